"""The end of a training run: its result on the screen, in `summary.json` and in pictures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vnet_fast import plotting
from vnet_fast.data.training_data import Data
from vnet_fast.devices import device_name
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.run import checkpoint
from vnet_fast.run.folder import BEST, CURVES, LOG, OVERLAY, RunFolder, write_summary
from vnet_fast.run.log import minutes, read_log
from vnet_fast.training.validation import Best
from vnet_fast.versions import versions


@dataclass(frozen=True)
class Result:
    """What a finished run has reached.

    Args:
        best: its best validation.
        iterations: that it has done.
        volumes: that it has trained on.
        seconds: of training, without validation.
        device: where it trained.
        processes: how many trained together.
        autocast: the dtype of mixed precision, or None.
    """

    best: Best
    iterations: int
    volumes: int
    seconds: float
    device: torch.device
    processes: int
    autocast: torch.dtype | None

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        per_case = self.best.per_case or {}
        return {
            "val_dice": self.best.dice,
            "val_dice_per_case": {name: float(np.mean(values)) for name, values in per_case.items()},
            "val_dice_per_class": np.mean(list(per_case.values()), axis=0).tolist(),
            "best_iteration": self.best.iteration,
            "iterations": self.iterations,
            "seconds": round(self.seconds, 1),
            "volumes_per_second": round(self.volumes / self.seconds, 3),
            "device": device_name(self.device),
            "processes": self.processes,
            "precision": "float32" if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "versions": versions(),
        }


def finish(folder: RunFolder, result: Result, model: VNet, data: Data, spacing: tuple[float, float, float]) -> None:
    """Writes `summary.json` and, with matplotlib, the pictures; prints the result.

    Args:
        folder: of the run.
        result: of the run.
        model: the network; afterwards it has the weights of `best.pt`.
        data: of the run.
        spacing: of the network's grid, mm, x y z.
    """
    summary = result.summary()
    write_summary(folder.path, summary)
    if plotting.available():
        plotting.curves(read_log(folder / LOG), folder / CURVES)
        _draw_overlay(folder, result, model, data, spacing)
    else:
        print("no pictures: matplotlib is not installed (pip install 'vnet_fast[plots]')")
    classes = summary["val_dice_per_class"]
    print(
        f"validation Dice {result.best.dice:.4f}"
        + (f" (classes {', '.join(f'{dice:.4f}' for dice in classes)})" if len(classes) > 1 else "")
        + f" at iteration {result.best.iteration}, {summary['volumes_per_second']:.2f} volumes/s, "
        f"{minutes(result.seconds)} of training"
    )
    print(f"predict with: python -m vnet_fast.predict --checkpoint {folder / BEST} --input … --output …")


def _draw_overlay(
    folder: RunFolder, result: Result, model: VNet, data: Data, spacing: tuple[float, float, float]
) -> None:
    """Draws the median case of the best validation, which is neither the luckiest nor the worst."""
    path, per_case = folder / BEST, result.best.per_case or {}
    checkpoint.fill_model(model, checkpoint.load(path, result.device), path)
    by_dice = sorted(data.validation, key=lambda case: float(np.mean(per_case[case.name])))
    case = by_dice[len(by_dice) // 2]
    plotting.overlay(
        case.image,
        np.minimum(case.mask, 1) if data.num_classes == 2 else case.mask,
        {"": predict_probabilities(model, case.image, result.autocast).argmax(0)},
        spacing,
        f"{case.name}: Dice {np.mean(per_case[case.name]):.3f}, the median of validation",
        folder / OVERLAY,
    )
