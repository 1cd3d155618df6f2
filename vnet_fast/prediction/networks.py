"""The networks of checkpoints, one or an ensemble."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vnet_fast.data.classes import title_of
from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.nn.folding import folded
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.task import Task
from vnet_fast.progress import note
from vnet_fast.run import checkpoint
from vnet_fast.run.folder import best_checkpoints

AGREE = "Name checkpoints that agree in it"


@dataclass(frozen=True)
class Networks:
    """The networks of checkpoints, together in memory.

    Args:
        model: the network, or a ModuleList of several.
        device: where they are.
        task: what they all do.
        held_out: the names of the cases that all the runs held out.
        count: how many there are.
        outputs: channels of their output: one for each label, background included, or for each region.
    """

    model: nn.Module
    device: torch.device
    task: Task
    held_out: set[str]
    count: int
    outputs: int

    @property
    def titles(self) -> dict[int, str]:
        """What the foreground classes, or the regions, are called in texts by their number, 1 and up."""
        if self.task.regions:
            return {number: region.name for number, region in enumerate(self.task.regions, start=1)}
        return {label: title_of(label, self.task.class_names) for label in range(1, self.outputs)}


def build_network(content: dict[str, Any], path: str | Path, device: torch.device) -> tuple[VNet, torch.device]:
    """The network of a checkpoint's content for prediction, with batch norm folded into its convolutions, and its
    device, which is the CPU if a GPU's memory is too small.
    """
    try:
        return folded(checkpoint.build_model(content, path, device)), device
    except torch.OutOfMemoryError:
        note(f"{path}: out of memory on the GPU, the network runs on the CPU")
    return folded(checkpoint.build_model(content, path, HOST)), HOST


def checkpoint_files(paths: Sequence[str]) -> list[str]:
    """The checkpoints that paths name: a folder stands for the `best.pt` of its run, or of each of its folds.

    Raises:
        InputError: if a folder is no run's, or has no `best.pt` yet.
    """
    return [file for path in paths for file in (map(str, best_checkpoints(path)) if os.path.isdir(path) else [path])]


def load_networks(paths: Sequence[str], device: torch.device) -> Networks:
    """Loads the networks of checkpoints.

    Args:
        paths: of checkpoints; a folder stands for the `best.pt` of its run, or of each fold of its cross-validation.
        device: where they go.

    Raises:
        InputError: if one can't be used, is named twice, or differs from the first in classes, channels, spacing or
            volume; or if two give a class different names.
    """
    networks: list[VNet] = []
    named: dict[int, tuple[str, str]] = {}
    held_out, tasks = [], []
    paths = checkpoint_files(paths)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError("--checkpoint", "names a checkpoint twice", "Name each one once")
    for path in paths:
        content = checkpoint.load(path)
        tasks.append(Task.of(content, path))
        network, device = build_network(content, path, device)
        _check_agreement(paths[0], (networks or [network])[0], tasks[0], path, network, tasks[-1])
        _check_names(named, path, tasks[-1])
        networks.append(network)
        held_out.append({*content["validation"]})
    # if one did not fit on the GPU, all of them run on the CPU
    model = networks[0] if len(networks) == 1 else nn.ModuleList(networks).to(device)
    return Networks(model, device, tasks[0], set.intersection(*held_out), len(networks), networks[0].num_classes)


def _check_agreement(first_path: str, first: VNet, first_task: Task, path: str, network: VNet, task: Task) -> None:
    """Raises an InputError if a network does something else than the first one."""
    for name, ours, theirs in (
        ("number of classes", network.num_classes, first.num_classes),
        ("number of channels", network.in_channels, first.in_channels),
        ("list of regions", _names(task), _names(first_task)),
        ("spacing", _text(task.spacing), _text(first_task.spacing)),
        ("volume", _text(task.size), _text(first_task.size)),
        ("training on patches", "on" if task.patches else "off", "on" if first_task.patches else "off"),
        *(
            (f"channel {number}", channel.name, other.name)
            for number, (channel, other) in enumerate(zip(task.channels, first_task.channels, strict=False))
            # not all data sets say what their channels are
            if channel.name and other.name and channel.name.casefold() != other.name.casefold()
        ),
        *(
            (f"scaling of channel {number}", channel.scaling, other.scaling)
            for number, (channel, other) in enumerate(zip(task.channels, first_task.channels, strict=False))
        ),
    ):
        if ours != theirs:
            cause = f"its {name} is {ours}, that of {first_path} is {theirs}"
            raise InputError(path, cause, AGREE)


def _check_names(named: dict[int, tuple[str, str]], path: str, task: Task) -> None:
    """Raises an InputError if a class has another name in a network before, but for capital letters.

    Args:
        named: the first name of each class by label, and the checkpoint that has it; this one's are added.
        path: of the checkpoint.
        task: of its network.
    """
    for label, name in task.class_names.items():
        other, first_path = named.setdefault(label, (name, path))
        if name.casefold() != other.casefold():
            cause = f"its class {label} is {name}, that of {first_path} is {other}"
            raise InputError(path, cause, AGREE)


def _names(task: Task) -> str:
    return "; ".join(f"{region.name}: {' '.join(map(str, region.labels))}" for region in task.regions) or "none"


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
