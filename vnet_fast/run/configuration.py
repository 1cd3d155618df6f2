"""The settings of a training run: their defaults, their ranges, and those in the folder of a run."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vnet_fast.command_line import (
    AUTO,
    MAX_INT,
    natural_float,
    natural_int,
    option,
    or_auto,
    parse_stored,
    path_text,
    positive_float,
    positive_int,
    share,
)
from vnet_fast.devices import DEVICES, find_device
from vnet_fast.errors import InputError
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy
from vnet_fast.nn.norm import KINDS
from vnet_fast.nn.topology import KERNEL_SIZE, KERNEL_SIZES, LEVELS, MIN_LEVELS, TOPOLOGIES
from vnet_fast.run.augmentation import Augmentation, check_augmentation
from vnet_fast.run.fold_options import ALL, check_fold_options, fold_number
from vnet_fast.run.grid_options import check_grid_options, check_size
from vnet_fast.run.initial import NO_NORM, check_freeze
from vnet_fast.run.labels import DICE, DICE_CE, check_labels
from vnet_fast.run.memory import Load, check_grid, check_load
from vnet_fast.run.recipes import FAST, PAPER, RECIPES
from vnet_fast.stored import read_object, reason

CONFIG_FILE = "config.json"
LOSSES: dict[str, Callable[[], nn.Module]] = {
    DICE: DiceLoss.paper,
    "weighted-ce": WeightedCrossEntropy,
    DICE_CE: partial(DiceCELoss, include_background=False, to_onehot_y=True, softmax=True, batch=True),
}
MAX_SEED = 2**63
# more processes than a machine has cores
MAX_WORKERS = 1024
# what may change when a run is resumed; any other change would make it another run
FREE_ON_RESUME = {
    "iterations",
    "patience",
    "val_every",
    "save_every",
    "device",
    "amp",
    "data",
    "labels",
    "split",
    "cache",
    "init",
    "workers",
    "no_graph",
    "tensorboard",
}


@dataclass(frozen=True)
class Config(Augmentation):
    """Train a V-Net. With --data the defaults are the paper's recipe. Without it, a short demonstration
    of the fast recipe trains on synthetic phantoms; its size depends on the device."""

    data: str | None = option(
        None, "folder of volumes and masks; without it, phantoms are generated", type=path_text, metavar="DIR"
    )
    labels: str | None = option(
        None, "folder of the masks, if they are not beside the volumes", type=path_text, metavar="DIR"
    )
    # never None once `configure` has returned
    output: str = option(None, "folder of the run (default: runs/DATE_TIME)", type=path_text, metavar="DIR")
    cache: str | None = option(
        None, "folder of the prepared volumes (default: ~/.cache/vnet_fast)", type=path_text, metavar="DIR"
    )
    resume: str | None = option(None, "resume the run in this folder", type=path_text, metavar="RUN")
    # never None once `configure` has returned
    amp: str | None = option(
        None, "mixed precision; --amp alone means auto (default: auto on a GPU, off on a CPU)", nargs="?", const="auto",
        choices=("auto", "bf16", "fp16", "off"),
    )  # fmt: skip
    device: str = option("auto", "device to train on", choices=DEVICES)
    recipe: str = option(
        PAPER,
        "settings that are not given: the paper's, or those that learn fastest, best with --minutes",
        choices=tuple(RECIPES),
    )
    init: str | None = option(
        None, "checkpoint of another run, whose weights, network and grid the run starts with", type=path_text,
        metavar="FILE",
    )  # fmt: skip
    freeze: int = option(0, "stages, from the first on, that keep the weights of --init", type=natural_int, metavar="N")
    topology: str = option(
        "paper", "the network of the paper's figure 2, or the one that its authors released", choices=tuple(TOPOLOGIES)
    )
    norm: str = option("none", "normalisation before each activation; the paper has none", choices=(NO_NORM, *KINDS))
    levels: int = option(
        LEVELS,
        "resolutions of the network; fewer leave out the coarsest",
        type=positive_int,
        choices=range(MIN_LEVELS, LEVELS + 1),
    )
    kernel_size: int = option(
        KERNEL_SIZE,
        "voxels along an axis of the stages' convolutions; 5 in the paper",
        type=positive_int,
        choices=KERNEL_SIZES,
    )
    halvings: tuple[int, int, int] | None = option(
        None, "of the steps to the next resolution, how many halve it along each axis; the others come first (default: "
        "all; with the fast recipe fewer along an axis whose spacing is twice the finest, or more)",
        type=natural_int, nargs=3, metavar=("X", "Y", "Z"),
    )  # fmt: skip
    base_channels: int = option(16, "channels of the first stage", type=positive_int, metavar="N")
    # never auto once `configure` has returned
    volume: tuple[int, int, int] = option(
        (128, 128, 64), f"size of the network's input, voxels, or {AUTO}", type=or_auto(positive_int), nargs="+",
        metavar=("X", "Y", "Z"),
    )  # fmt: skip
    spacing: tuple[float, float, float] = option(
        (1.0, 1.0, 1.5), f"voxel spacing of the network's input, mm, or {AUTO}: by the data, as in the fast recipe",
        type=or_auto(positive_float), nargs="+", metavar=("X", "Y", "Z"),
    )  # fmt: skip
    patches: str = option(
        "auto", "train on patches of whole volumes; auto: with the fast recipe, if volumes are larger than --volume",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    batch_size: int = option(2, "volumes per iteration", type=positive_int, metavar="N")
    iterations: int = option(30_000, "updates of the weights", type=positive_int, metavar="N")
    minutes: float | None = option(
        None, "minutes of training and validation, instead of --iterations: their number follows from the first ones",
        type=positive_float, metavar="M",
    )  # fmt: skip
    optimizer: str = option(
        "sgd", "SGD with momentum as in the paper, with Nesterov's momentum, or AdamW",
        choices=("sgd", "nesterov", "adamw"),
    )  # fmt: skip
    learning_rate: float = option(
        1e-4, "learning rate of the first iteration after the warm-up", type=positive_float, metavar="RATE"
    )
    schedule: str = option(
        "step", "how the learning rate falls: every --lr-step iterations, as a polynomial, or as half a cosine wave",
        choices=("step", "poly", "cosine"),
    )  # fmt: skip
    warmup: int = option(0, "iterations in which the learning rate rises linearly", type=natural_int, metavar="N")
    clip: float | None = option(
        None, "largest norm of the gradient; a larger one is scaled down to it", type=positive_float, metavar="NORM"
    )
    ema: float | None = option(
        None, "decay of the average of weights that is validated and predicts", type=share, metavar="DECAY"
    )
    momentum: float = option(0.99, "momentum of SGD", type=natural_float, metavar="M")
    weight_decay: float = option(5e-4, "weight decay; biases have none", type=natural_float, metavar="W")
    lr_step: int = option(
        25_000, "iterations after which the learning rate is divided by 10", type=positive_int, metavar="N"
    )
    loss: str = option("dice", "the paper's Dice loss, its baseline, or Dice + CE", choices=tuple(LOSSES))
    regions: tuple[str, ...] | None = option(
        None, "classes of several labels, which may overlap, each as NAME: LABEL LABEL", nargs="+", metavar="REGION"
    )
    ignore_label: int | None = option(
        None, "label whose voxels count in no loss and no metric", type=positive_int, metavar="N"
    )
    binary: bool = option(False, "treat all labels as one foreground class", action="store_true")
    folds: int = option(5, "number of folds that the cases are divided into", type=positive_int, metavar="N")
    fold: int | str = option(
        0, f"fold to validate on, counted from 0; {ALL} trains one run per fold", type=fold_number, metavar="N"
    )
    split: str | None = option(
        None, "nnU-Net's splits_final.json: the cases of each fold, instead of --folds", type=path_text, metavar="FILE"
    )
    workers: int = option(
        0, "processes that augment ahead of the step, on a CPU; 0 augments within the step", type=natural_int,
        metavar="N",
    )  # fmt: skip
    no_graph: bool = option(False, "launch the kernels of a run one by one, not as CUDA graphs", action="store_true")
    deterministic: bool = option(
        False, "give the same bits every time, on a GPU too, where it is slower", action="store_true"
    )
    no_augment: bool = option(False, "disable augmentation", action="store_true")
    val_every: int | None = option(
        None, "iterations between validations (default: ten validations a run, fewer in a short one)",
        type=positive_int, metavar="N",
    )  # fmt: skip
    val_cases: int | None = option(
        None, "validate on so many of the held-out cases (default: all, but with --minutes as many as a tenth of them "
        "suffices for)", type=positive_int, metavar="N",
    )  # fmt: skip
    save_every: int | None = option(
        None, "iterations between checkpoints (default: one at every validation)", type=positive_int, metavar="N"
    )
    patience: int | None = option(
        None, "end after so many validations without a higher Dice", type=positive_int, metavar="N"
    )
    tensorboard: bool = option(
        False, "also write loss, learning rate, Dice and speed to RUN/tensorboard",
        action=argparse.BooleanOptionalAction,
    )  # fmt: skip
    check: bool = option(False, "check every case of --data without training", action="store_true")
    seed: int = option(0, "seed of folds, weights, order and augmentation", type=natural_int, metavar="N")

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of the network, but for its input's and output's channels."""
        norm = None if self.norm == NO_NORM else self.norm
        return {
            "base_channels": self.base_channels, "topology": self.topology, "norm": norm, "levels": self.levels,
            "kernel_size": self.kernel_size, "halvings": self.halvings and self.halvings[::-1],
        }  # fmt: skip

    @property
    def wants_patches(self) -> bool | None:
        """Whether patches are trained on; None if that depends on the volumes."""
        return {"on": True, "off": False, "auto": None if self.recipe == FAST else False}[self.patches]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the network's input, voxels, (z, y, x)."""
        x, y, z = self.volume
        return z, y, x


def check_memory(config: Config) -> None:
    """Raises an InputError if what a run of a Config needs can't fit in memory, before anything is allocated."""
    if config.check:
        check_grid(config.volume, "--volume")
        return
    half, phantoms = config.amp != "off", config.data is None
    network = config.levels, config.kernel_size
    load = Load(find_device(config.device), config.batch_size, config.base_channels, half, phantoms, *network)
    check_load(load, config.volume)


def check_settings(config: Config) -> None:
    """Raises an InputError if settings are out of range or contradict each other."""
    check_augmentation(config)
    check_freeze(config.freeze, config.init, config.levels)
    for option_of_data in ("labels", "regions", "ignore_label"):
        if getattr(config, option_of_data) and not config.data:
            flag = "--" + option_of_data.replace("_", "-")
            raise InputError(flag, "given without --data", "Give the folder of the volumes too")
    if config.patches == "on" and not config.data:
        raise InputError("--patches", "on without --data", "Give the folder of the volumes too")
    check_labels(config.regions, config.ignore_label, config.binary, config.loss)
    check_fold_options(config.folds, config.fold, config.split, config.data)
    if config.workers > MAX_WORKERS:
        raise InputError("--workers", f"must be at most {MAX_WORKERS}; got {config.workers}", "Give one per core")
    check_grid_options(config.volume, config.spacing)
    check_size(config.volume, config.halvings, config.levels)
    if config.warmup > MAX_INT:
        raise InputError("--warmup", f"must be at most {MAX_INT}; got {config.warmup}", "Give far fewer")
    if config.optimizer == "nesterov" and not config.momentum:
        raise InputError("--momentum", "is 0 with --optimizer nesterov", "Give more, or --optimizer sgd")
    if config.momentum >= 1:
        raise InputError("--momentum", f"must be below 1; got {config.momentum}", "The paper has 0.99")
    if config.seed >= MAX_SEED:
        raise InputError("--seed", f"must be below 2^63; got {config.seed}", "Any small number will do")


def stored_config(run: str | Path) -> Config:
    """The Config in the folder of a run or a cross-validation.

    Raises:
        InputError: if there is none in the folder, or the file has a value that is not allowed.
    """
    path = Path(run) / CONFIG_FILE
    try:
        stored = read_object(path)
    except FileNotFoundError:
        raise InputError(path, "no such file", "Name the folder of a run") from None
    except (OSError, ValueError) as error:
        raise InputError(path, f"can't be read ({reason(error)})", "Name the folder of a run") from None
    # what runs before there were patches do not say
    config = parse_stored(Config, {"patches": "off", **stored}, path)
    try:
        check_settings(config)
    except InputError as error:
        cause = f"not what a run stores ({error.subject} {error.cause})"
        raise InputError(path, cause, "Restore the file, or start a new run") from None
    return config
