"""The recipes of `--recipe`: tables of settings that the command line can still change."""

from typing import Any

import torch

PAPER = "paper"
# What a recipe sets; everything else has the default of its option, which is the paper's.
RECIPES: dict[str, dict[str, Any]] = {
    PAPER: {},
    "fast": {
        "loss": "dice",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "schedule": "poly",
        "warmup": 50,
        "clip": 12.0,
        "ema": 0.99,
    },
}


def demonstration(device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """The settings of a first run without data: about three minutes on two CPU cores, less on a GPU.

    Args:
        device: where it trains.
        dtype: of mixed precision, or None for float32.
    """
    settings: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 3e-4, "iterations": 240, "lr_step": 180}
    if device.type == "cuda":
        # The paper's size. With steps of 2e-4 it takes everything for foreground, and stays there.
        return {**settings, "learning_rate": 1e-4, "iterations": 120, "lr_step": 90}
    if dtype is None:
        settings |= {"iterations": 180, "lr_step": 135}
    # three validations, so that a first run shows its progress
    settings["val_every"] = settings["iterations"] // 3
    return {**settings, "volume": (48, 48, 32), "spacing": (2.5, 2.5, 3.0), "base_channels": 8}
