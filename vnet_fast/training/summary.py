"""The end of a training run: its result on the screen, in `summary.json` and in pictures."""

import json

import numpy as np

from vnet_fast import plotting
from vnet_fast.devices import device_name
from vnet_fast.files import write_text
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.run import checkpoint
from vnet_fast.run.log import minutes, read_log
from vnet_fast.versions import versions


def finish(run):
    """Writes `summary.json` and, with matplotlib, the pictures; says the result.

    Args:
        run: the `train.Run`.
    """
    best = run.best
    volumes = run.iteration * run.config.batch_size * run.processes.count
    summary = {
        "val_dice": best.dice,
        "val_dice_per_case": {name: float(np.mean(values)) for name, values in best.per_case.items()},
        "val_dice_per_class": np.mean(list(best.per_case.values()), axis=0).tolist(),
        "best_iteration": best.iteration,
        "iterations": run.iteration,
        "seconds": round(run.seconds, 1),
        "volumes_per_second": round(volumes / run.seconds, 3),
        "device": device_name(run.device),
        "processes": run.processes.count,
        "precision": "float32" if run.autocast is None else str(run.autocast).removeprefix("torch."),
        "versions": versions(),
    }
    write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    if plotting.available():
        _draw(run)
    else:
        print("no pictures: matplotlib is not installed (pip install 'vnet_fast[plots]')")
    classes = ", ".join(f"{dice:.4f}" for dice in summary["val_dice_per_class"])
    print(
        f"validation Dice {best.dice:.4f}"
        + (f" (classes {classes})" if len(summary["val_dice_per_class"]) > 1 else "")
        + f" at iteration {best.iteration}, {summary['volumes_per_second']:.2f} volumes/s, "
        f"{minutes(run.seconds)} of training"
    )
    print(f"predict with: python -m vnet_fast.predict --checkpoint {run.folder / 'best.pt'} --input … --output …")


def _draw(run):
    plotting.curves(read_log(run.folder / "log.csv"), run.folder / "curves.png")
    path = run.folder / "best.pt"
    checkpoint.fill_model(run.model, checkpoint.load(path, run.device), path)
    # the median case: neither the luckiest nor the worst
    by_dice = sorted(run.data.validation, key=lambda case: np.mean(run.best.per_case[case.name]))
    case = by_dice[len(by_dice) // 2]
    plotting.overlay(
        case.image,
        np.minimum(case.mask, 1) if run.data.num_classes == 2 else case.mask,
        {"": predict_probabilities(run.model, case.image, run.autocast).argmax(0)},
        run.config.spacing,
        f"{case.name}: Dice {np.mean(run.best.per_case[case.name]):.3f}, the median of validation",
        run.folder / "overlay.png",
    )
