"""The settings of a training run: defaults, the command line's, those of a run to resume."""

import argparse
import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vnet_fast.command_line import (
    natural_float,
    natural_int,
    option,
    parse_stored,
    path_text,
    positive_float,
    positive_int,
)
from vnet_fast.devices import choose_precision, find_device
from vnet_fast.errors import InputError
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy
from vnet_fast.nn.vnet import SIZE_MULTIPLE, TOPOLOGIES

LOSSES = {"dice": DiceLoss.paper, "weighted-ce": WeightedCrossEntropy}
MAX_SEED = 2**63
# the --fold that trains every fold in turn
ALL = "all"
# what a resumed run may change; all else would make it another run
FREE_ON_RESUME = {
    "iterations",
    "val_every",
    "save_every",
    "device",
    "amp",
    "data",
    "labels",
    "cache",
    "workers",
    "no_graph",
    "tensorboard",
}


def fold_number(text):
    """The type of --fold: a number from 0, or ALL."""
    if text == ALL:
        return ALL
    try:
        return natural_int(text)
    except argparse.ArgumentTypeError:
        words = f"must be {ALL} or a whole number, 0 or more; got {text!r}"
        raise argparse.ArgumentTypeError(words) from None


@dataclass(frozen=True)
class Config:
    """Trains a V-Net. With --data the defaults are the paper's recipe; without it a short
    demonstration on synthetic phantoms, sized to the device."""

    data: str = option(
        None, "folder of volumes with masks; without it phantoms are made", type=path_text, metavar="DIR"
    )
    labels: str = option(None, "folder of the masks, if they are not with the volumes", type=path_text, metavar="DIR")
    output: str = option(None, "folder of the run (default: runs/ and the time)", type=path_text, metavar="DIR")
    cache: str = option(None, "folder of prepared volumes (default: ~/.cache/vnet_fast)", type=path_text, metavar="DIR")
    resume: str = option(None, "goes on with the run in this folder", type=path_text, metavar="RUN")
    amp: str = option(
        "off", "mixed precision; --amp alone is auto", nargs="?", const="auto", choices=("auto", "bf16", "fp16", "off")
    )
    device: str = option("auto", "where to train", choices=("auto", "cpu", "cuda"))
    topology: str = option("paper", "figure 2 of the paper, or the released network", choices=tuple(TOPOLOGIES))
    base_channels: int = option(16, "channels of the first stage", type=positive_int, metavar="N")
    volume: tuple = option(
        (128, 128, 64), "size the network works on, voxels", type=positive_int, nargs=3, metavar=("X", "Y", "Z")
    )
    spacing: tuple = option(
        (1.0, 1.0, 1.5), "spacing the network works on, mm", type=positive_float, nargs=3, metavar=("X", "Y", "Z")
    )
    batch_size: int = option(2, "volumes an iteration", type=positive_int, metavar="N")
    iterations: int = option(30_000, "updates of the weights", type=positive_int, metavar="N")
    optimizer: str = option("sgd", "the paper's SGD with momentum, or AdamW", choices=("sgd", "adamw"))
    learning_rate: float = option(1e-4, "of the first iteration", type=positive_float, metavar="RATE")
    momentum: float = option(0.99, "of SGD", type=natural_float, metavar="M")
    weight_decay: float = option(5e-4, "of weights; biases have none", type=natural_float, metavar="W")
    lr_step: int = option(
        25_000, "iterations after which the learning rate is divided by 10", type=positive_int, metavar="N"
    )
    loss: str = option("dice", "the paper's Dice loss or its baseline", choices=tuple(LOSSES))
    binary: bool = option(False, "all labels are one foreground", action="store_true")
    folds: int = option(5, "parts the cases are dealt to", type=positive_int, metavar="N")
    fold: int | str = option(
        0, f"the part to validate on, from 0; {ALL}: a run for each, in turn", type=fold_number, metavar="N"
    )
    workers: int = option(
        0, "processes that augment ahead of the step on a CPU; 0: within it", type=natural_int, metavar="N"
    )
    no_graph: bool = option(False, "runs each step's kernels one by one on a GPU too", action="store_true")
    deterministic: bool = option(
        False, "the same bits every time, also on a GPU, where it is slower", action="store_true"
    )
    no_augment: bool = option(False, "volumes as they are", action="store_true")
    val_every: int = option(
        None,
        "iterations between validations (default: ten a run, fewer in a short one)",
        type=positive_int,
        metavar="N",
    )
    save_every: int = option(
        None, "iterations between checkpoints (default: at every validation)", type=positive_int, metavar="N"
    )
    tensorboard: bool = option(
        False,
        "writes loss, learning rate, Dice and speed to RUN/tensorboard too",
        action=argparse.BooleanOptionalAction,
    )
    check: bool = option(False, "only looks at every case of --data, and trains nothing", action="store_true")
    seed: int = option(0, "of folds, weights, order and augmentation", type=natural_int, metavar="N")


def demonstration(device, dtype):
    """The settings of a first run without data, sized to the device: about three minutes on two
    CPU cores, in `dtype` of mixed precision or None for float32.
    """
    settings = {"optimizer": "adamw", "learning_rate": 3e-4, "iterations": 240, "lr_step": 180}
    if device.type == "cuda":
        # the paper's size; a wider network is less patient with large steps
        return {**settings, "learning_rate": 2e-4}
    if dtype is None:
        settings |= {"iterations": 180, "lr_step": 135}
    # a first run is to be watched
    settings["val_every"] = settings["iterations"] // 3
    return {**settings, "volume": (48, 48, 32), "spacing": (2.5, 2.5, 3.0), "base_channels": 8}


def configure(given):
    """The Config of the options given on the command line.

    Args:
        given: dict from option to value, only those given.

    Raises:
        InputError: if options contradict each other or the run to resume.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if "resume" in given:
        config = _resumed(given)
    else:
        config = Config(**given)
        if config.data is None:
            device = find_device(config.device)
            config = Config(**{**demonstration(device, choose_precision(config.amp, device)[0]), **given})
        if config.output is None:
            config = replace(config, output=str(Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    if config.labels and not config.data:
        raise InputError("--labels", "given without --data", "Name the folder of the volumes too")
    if config.folds < 2:
        raise InputError("--folds", f"must be at least 2; got {config.folds}", "Keep some cases for validation")
    if config.fold != ALL and config.fold >= config.folds:
        raise InputError("--fold", f"must be below --folds ({config.folds}); got {config.fold}", "They count from 0")
    if min(config.volume) < SIZE_MULTIPLE:
        size = " ".join(map(str, config.volume))
        raise InputError("--volume", f"must be at least {SIZE_MULTIPLE} along each axis; got {size}", "Enlarge it")
    if config.momentum >= 1:
        raise InputError("--momentum", f"must be below 1; got {config.momentum}", "The paper has 0.99")
    if config.seed >= MAX_SEED:
        raise InputError("--seed", f"must be below 2^63; got {config.seed}", "Any small number will do")
    return config


def stored_config(run):
    """The Config that a run or a cross-validation keeps in its folder.

    Raises:
        InputError: if the folder is not one's, or the file was changed to what can't be.
    """
    path = Path(run) / "config.json"
    try:
        return parse_stored(Config, json.loads(path.read_text(encoding="utf-8")), path)
    except FileNotFoundError:
        raise InputError(path, "no such file", "Name the folder of a run") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(path, f"can't be read ({error})", "Name the folder of a run") from None


def _resumed(given):
    stored = stored_config(given["resume"])
    for name, value in given.items():
        if name not in FREE_ON_RESUME | {"resume", "output"} and getattr(stored, name) != value:
            flag = "--" + name.replace("_", "-")
            cause = f"is {value} here and {getattr(stored, name)} in {given['resume']}"
            raise InputError(flag, cause, "Leave it out, or start a new run")
    if Path(given.get("output", given["resume"])) != Path(given["resume"]):
        raise InputError("--output", "given with --resume", "Leave it out: a run goes on in its own folder")
    return replace(stored, **{**given, "output": given["resume"]})
