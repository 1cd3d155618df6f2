"""The networks of checkpoints, one or an ensemble."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vnet_fast.data.channels import Channel, of_checkpoint
from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.nn.folding import folded
from vnet_fast.nn.vnet import VNet
from vnet_fast.run import checkpoint


@dataclass(frozen=True)
class Networks:
    """The networks of checkpoints, together in memory.

    Args:
        model: the network, or a ModuleList of several.
        device: where they are.
        spacing: of their grid, mm, x y z.
        size: of their grid, voxels, x y z.
        held_out: the names of the cases that all the runs held out.
        patches: whether they were trained on patches of whole volumes.
        channels: of the volumes.
    """

    model: nn.Module
    device: torch.device
    spacing: tuple[float, float, float]
    size: tuple[int, int, int]
    held_out: set[str]
    patches: bool = False
    channels: tuple[Channel, ...] = (Channel(),)


def build_network(content: dict[str, Any], path: str | Path, device: torch.device) -> tuple[VNet, torch.device]:
    """The network of a checkpoint's content for prediction, with batch norm folded into its convolutions, and its
    device, which is the CPU if a GPU's memory is too small.
    """
    try:
        return folded(checkpoint.build_model(content, path, device)), device
    except torch.OutOfMemoryError:
        print(f"{path}: out of memory on the GPU, the network runs on the CPU")
    return folded(checkpoint.build_model(content, path, HOST)), HOST


def load_networks(paths: Sequence[str], device: torch.device) -> Networks:
    """Loads the networks of checkpoints.

    Raises:
        InputError: if one can't be used, or differs from the first in classes, channels, spacing or volume.
    """
    networks, held_out, channels = [], [], []
    first: dict[str, tuple[float | str, ...]] = {}
    for path in paths:
        content = checkpoint.load(path)
        spacing, size = checkpoint.grid_of(content, path)
        network, device = build_network(content, path, device)
        ours: dict[str, tuple[float | str, ...]] = {
            "number of classes": (network.num_classes,), "spacing": spacing, "volume": size,
            "training on patches": ("on" if content.get("patches") else "off",),
            "number of channels": (network.in_channels,),
            "normalisation": tuple(map(str, (channel.scaling for channel in of_checkpoint(content)))),
        }  # fmt: skip
        first = first or ours
        for name in (name for name in ours if ours[name] != first[name]):
            values = [
                " ".join(value if isinstance(value, str) else f"{value:g}" for value in settings[name])
                for settings in (ours, first)
            ]
            cause = f"its {name} is {values[0]}, that of {paths[0]} is {values[1]}"
            raise InputError(path, cause, "Name checkpoints that agree in it")
        networks.append(network)
        channels.append(of_checkpoint(content))
        held_out.append({*content["validation"]})
    # if one did not fit on the GPU, all of them run on the CPU
    model = networks[0] if len(networks) == 1 else nn.ModuleList(networks).to(device)
    patches = first["training on patches"] == ("on",)
    return Networks(model, device, spacing, size, set.intersection(*held_out), patches, channels[0])
