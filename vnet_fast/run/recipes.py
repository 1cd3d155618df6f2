"""The recipes of `--recipe`: tables of settings that the command line can still change."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from vnet_fast.nn.topology import DOWN_FACTOR, LEVELS, MIN_LEVELS

PAPER, FAST = "paper", "fast"
# What a recipe sets; everything else has the default of its option, which is the paper's.
RECIPES: dict[str, dict[str, Any]] = {
    PAPER: {},
    FAST: {
        # the network
        "norm": "batch",
        "kernel_size": 3,
        # learning
        "loss": "dice-ce",
        "optimizer": "adamw",
        "learning_rate": 6e-3,
        "weight_decay": 1e-2,
        "schedule": "poly",
        "warmup": 20,
        "clip": 12.0,
        "ema": 0.99,
        # augmentation
        "deformation": 0.0,
        "matching": 0.0,
        "rotation": (0.5, 15.0, 15.0),
        "scaling": (0.5, 0.85, 1.2),
        "flip": "x",
        "brightness": (0.3, 0.75, 1.25),
        "contrast": (0.3, 0.75, 1.25),
        "gamma": (0.3, 0.7, 1.5),
        "noise": (0.3, 0.15),
    },
}
# voxels along the shortest axis at the coarsest resolution, at least, where the recipe chooses the levels
COARSEST_LENGTH = 4
# of the first stage where the recipe trains on a CPU: twice as many learn no more in the same minutes
CPU_CHANNELS = 8


def settings_of(
    recipe: str, volume: Sequence[int], spacing: Sequence[float], device: torch.device, levels: int | None = None
) -> dict[str, Any]:
    """The settings of a recipe for volumes of a size and spacing (mm), where it trains.

    Args:
        recipe, volume, spacing, device: of the run.
        levels: of the network, if they are given.
    """
    settings = dict(RECIPES[recipe])
    if recipe == FAST:
        settings["levels"] = levels or fitting_levels(volume, spacing)
        halvings = halvings_of(settings["levels"], spacing)
        # the network of most volumes is described as it always was
        settings["halvings"] = None if len(set(halvings)) == 1 else halvings
        if device.type == "cpu":
            settings["base_channels"] = CPU_CHANNELS
    return settings


def halvings_of(levels: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """How many of the steps between a network's resolutions halve it along each axis: along an axis of a longer
    spacing (mm), the first steps leave it as it is, until the others' has come within a factor of two.

    Source: nnU-Net (Isensee et al. 2021), which also leaves the last steps out along an axis of few voxels.
    """
    finest = min(spacing)
    # a power of two stays one in spite of rounding
    skipped = (math.floor(math.log2(length / finest) + 1e-6) for length in spacing)
    return tuple(max(0, levels - 1 - count) for count in skipped)


def with_levels(given: dict[str, Any]) -> dict[str, Any]:
    """Options with the levels that follow from their halvings, if they have only these."""
    if not given.get("halvings") or given.get("levels") is not None:
        return given
    levels = max(given["halvings"]) + 1
    return {**given, "levels": levels} if MIN_LEVELS <= levels <= LEVELS else given


def multiples_of(levels: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """What the lengths of a volume of a spacing must be multiples of, so that nothing is padded."""
    return tuple(DOWN_FACTOR**count for count in halvings_of(levels, spacing))


def fitting_levels(volume: Sequence[int], spacing: Sequence[float]) -> int:
    """Into how many resolutions a volume of a spacing can be divided, so that the coarsest still has an extent along
    each axis that is halved.
    """
    levels = MIN_LEVELS
    while levels < LEVELS and all(
        length >= COARSEST_LENGTH * multiple or multiple == 1
        for length, multiple in zip(volume, multiples_of(levels + 1, spacing), strict=True)
    ):
        levels += 1
    return levels


def demonstration(device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """The settings of a first run without data: about two minutes on two CPU cores, less on a GPU.

    Args:
        device: where it trains.
        dtype: of mixed precision, or None for float32.
    """
    if device.type == "cuda":
        # of the paper's size
        return {"iterations": 120}
    iterations = 600 if dtype is not None else 450
    # three validations, so that a first run shows its progress
    settings = {"iterations": iterations, "val_every": iterations // 3, "base_channels": CPU_CHANNELS}
    return {**settings, "volume": (48, 48, 32), "spacing": (2.5, 2.5, 3.0)}
