"""The end of a training run: its result on the screen, in `summary.json` and in pictures."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vnet_fast import plotting
from vnet_fast.averages import class_means, defined_mean, mean_dice
from vnet_fast.data.training_data import Data
from vnet_fast.devices import device_name
from vnet_fast.errors import InputError
from vnet_fast.files import plain
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.components import most_probable
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.passes import Passes
from vnet_fast.progress import say
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import BEST, CURVES, LOG, OVERLAY, RunFolder, write_summary
from vnet_fast.run.log import dice_text, minutes, read_log
from vnet_fast.training.own_grid import own_grid_dice
from vnet_fast.training.validation import Best, reference_labels
from vnet_fast.versions import versions

# the settings that a result names, which decide how fast a run learns
RECIPE = (
    "recipe", "loss", "optimizer", "learning_rate", "schedule", "warmup", "clip", "ema", "minutes", "patience",
    "init", "freeze",
)  # fmt: skip


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

    def summary(
        self, config: Config, titles: Sequence[str], own_grid: Mapping[str, Sequence[float]] | None
    ) -> dict[str, Any]:
        """The content of `summary.json`.

        Args:
            config: of the run.
            titles: what the foreground classes are called.
            own_grid: Dice of each class on the volumes' own grids, by the name of the case; or None.
        """
        return {
            **dice_entries(own_grid, "val_dice"),
            **dice_entries(self.best.per_case, "network_grid_dice"),
            "classes": list(titles),
            "best_iteration": self.best.iteration,
            "validations_without_gain": self.best.since,
            "iterations": self.iterations,
            "seconds": round(self.seconds, 1),
            "volumes_per_second": round(self.volumes / self.seconds, 3),
            "device": device_name(self.device),
            "processes": self.processes,
            "precision": "float32" if self.autocast is None else str(self.autocast).removeprefix("torch."),
            **{name: getattr(config, name) for name in RECIPE},
            "versions": versions(),
        }


def dice_entries(per_case: Mapping[str, Sequence[float]] | None, name: str) -> dict[str, Any]:
    """The entries of `summary.json` about a validation; what is not defined is null.

    Args:
        per_case: Dice of each class, by the name of the case, or None if there is no such validation.
        name: of the entries.

    Returns:
        dict with `name`, the mean over the classes of each class's mean over the cases, as `evaluate` has it;
        `name`_per_class, `name`_per_case (the mean over the classes) and `name`_per_case_and_class.
    """
    cases = per_case or {}
    entries = {
        name: mean_dice(cases.values()),
        f"{name}_per_class": class_means(cases.values()),
        f"{name}_per_case": {case: defined_mean(values) for case, values in cases.items()},
        f"{name}_per_case_and_class": cases,
    }
    return {key: plain(value) if cases else None for key, value in entries.items()}


def finish(
    folder: RunFolder, result: Result, model: VNet, data: Data, config: Config, interrupted: Callable[[], bool]
) -> None:
    """Predicts and measures the held-out cases, writes `summary.json` and, with matplotlib, the pictures, and prints
    the result.

    Args:
        folder: of the run.
        result: of the run.
        model: the network; afterwards it has the weights of `best.pt`.
        data: of the run.
        config: of the run.
        interrupted: asked between two predictions.

    Raises:
        KeyboardInterrupt: if `interrupted` said so, before `summary.json` is written.
    """
    own_grid = own_grid_dice(
        folder.path, config.device, data.num_classes, config.binary, interrupted, data.regions, data.ignored
    )
    summary = result.summary(config, data.titles, own_grid)
    write_summary(folder.path, summary)
    if plotting.available():
        plotting.curves(read_log(folder / LOG), folder / CURVES)
        _draw_overlay(folder, result, model, data, config)
    else:
        say("no pictures: matplotlib is not installed (pip install 'vnet_fast[plots]')")
    texts = [dice_text(own_grid, data.titles)] if own_grid else []
    on_network_grid = dice_text(result.best.per_case or {}, data.titles)
    texts += [f"{on_network_grid} on the network's grid"] if on_network_grid not in texts else []
    say(
        f"validation Dice {', '.join(texts)}, at iteration {result.best.iteration}; "
        f"{summary['volumes_per_second']:.2f} volumes/s, {minutes(result.seconds)} of training"
    )
    best = shlex.quote(str(folder / BEST))
    say(f"predict with: python -m vnet_fast.predict --checkpoint {best} --input … --output …")


def _draw_overlay(folder: RunFolder, result: Result, model: VNet, data: Data, config: Config) -> None:
    """Draws the median case of the best validation, which is neither the luckiest nor the worst."""
    path, per_case = folder / BEST, result.best.per_case or {}
    checkpoint.fill_model(model, checkpoint.load(path, result.device), path)
    validated = [case for case in data.validation if case.name in per_case]
    rated = [case for case in validated if not math.isnan(defined_mean(per_case[case.name]))]
    by_dice = sorted(rated or validated, key=lambda case: defined_mean(per_case[case.name]))
    case = by_dice[len(by_dice) // 2]
    try:
        overlapping, passes = bool(data.regions), Passes(not config.no_graph)
        probabilities = predict_probabilities(
            model, case.image, result.autocast, config.shape, overlapping=overlapping, passes=passes
        )
    except InputError as error:
        say(f"no {OVERLAY}: {error}")
        return
    inside, dice = case.inside, defined_mean(per_case[case.name])
    z, y, x = inside
    # without any structure, there is no Dice
    text = "-" if math.isnan(dice) else f"{dice:.3f}"
    plotting.overlay(
        case.image.reshape(-1, *case.shape)[0][inside],
        reference_labels(case, data.num_classes, data.ignored is not None)[inside],
        {"": most_probable(probabilities[:, z, y, x], data.regions)},
        config.spacing,
        f"{case.name}: Dice {text} on the network's grid, the median of validation",
        folder / OVERLAY,
    )
