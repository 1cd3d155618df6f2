"""Fine-tuning: what a run takes from the checkpoint of another one that it starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.nn.freezing import freeze
from vnet_fast.nn.vnet import VNet
from vnet_fast.progress import say, warn
from vnet_fast.regions import Region, stored_regions
from vnet_fast.run import checkpoint
from vnet_fast.text_table import printable

# of the network, which must be those of the checkpoint
NETWORK = ("topology", "norm", "levels", "kernel_size", "halvings", "base_channels")
# the value of --norm for a network without
NO_NORM = "none"
# the layers whose outputs are the classes
HEAD = ("head.", "wide_head.")
FIRST_WEIGHT = "left.0.layers.0.convolution.weight"


def inherited_settings(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that starts from a checkpoint, where they are not given: its network and grid.

    Args:
        path: of the checkpoint.
        given: dict from option to value, without the options that are not given.

    Raises:
        InputError: if the checkpoint can't be used, or options ask for another network than it has.
    """
    content = checkpoint.load(path)
    settings = {name: content["architecture"][name] for name in NETWORK}
    settings["norm"] = settings["norm"] or NO_NORM
    # x y z, as options are
    settings["halvings"] = tuple(reversed(settings["halvings"] or (settings["levels"] - 1,) * 3))
    for name, value in settings.items():
        asked = given.get(name, value)
        if (tuple(asked) if isinstance(asked, list) else asked) != value:
            flag = "--" + name.replace("_", "-")
            raise InputError(flag, f"is {given[name]} here and {value} in {path}", "Leave it out")
    # weights that are not numbers are found here, before anything is written
    checkpoint.build_model(content, path, HOST)
    if {"spacing", "volume"} <= given.keys():
        return settings
    spacing, volume = checkpoint.grid_of(content, path)
    return {**settings, "spacing": spacing, "volume": volume}


def check_freeze(stages: int, init: str | None, levels: int) -> None:
    """Raises an InputError if so many stages can't be frozen."""
    if stages and not init:
        raise InputError("--freeze", "given without --init", "Give a checkpoint, or leave it out")
    if stages > levels:
        raise InputError("--freeze", f"must be at most {levels}, the network's levels; got {stages}", "Give fewer")


def start_from(
    model: VNet, path: str | Path, regions: Sequence[Region] = (), described: Mapping[str, Any] | None = None
) -> str:
    """Gives a network the weights of a checkpoint.

    Another number of classes has an output layer of its own, which keeps its weights. Of other input channels each has
    the mean of the checkpoint's weights, as much smaller as the channels are more, so that their sum is as large.

    Args:
        model: the network, on any device.
        path: of the checkpoint, whose network differs from it in nothing else.
        regions: the network's classes, if they are regions. Other regions are other classes.
        described: what the run's checkpoints say about its data, or None.

    Returns:
        what did not fit, in words; empty if everything did.

    Raises:
        InputError: if the checkpoint can't be used, or its network differs.
    """
    content = checkpoint.load(path)
    for name in NETWORK:
        ours, theirs = getattr(model, name), content["architecture"][name]
        if ours != theirs:
            raise InputError(path, f"has {name} {theirs}, not {ours}", "Start from another checkpoint")
    source = checkpoint.build_model(content, path, HOST)
    stored = source.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            found = stored[name]
            if name.startswith(HEAD) and regions != stored_regions(content):
                continue
            if name == FIRST_WEIGHT and found.shape != weight.shape:
                found = (found.sum(1, keepdim=True) / model.in_channels).expand_as(weight)
            if found.shape == weight.shape:
                weight.copy_(found)
    differences = _differences(model, source, regions, stored_regions(content))
    return "; ".join([*differences, *_other_names(described or {}, content)])


def _other_names(described: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """What the data and a checkpoint call differently, channel by channel and class by class, in words."""
    texts = []
    for what in ("channels", "classes"):
        ours, theirs = (
            [entry["name"] if isinstance(entry, dict) else entry for entry in part.get(what) or ()]
            for part in (described, content)
        )
        pairs = zip(ours, theirs, strict=False)
        # a data set need not name them
        if len(ours) == len(theirs) and any(a and b and a.casefold() != b.casefold() for a, b in pairs):
            texts.append(f"its {what} are {', '.join(theirs)}, those of the data {', '.join(ours)}")
    return texts


def _differences(model: VNet, source: VNet, regions: Sequence[Region], stored: Sequence[Region]) -> list[str]:
    texts = []
    if model.num_classes != source.num_classes or regions != stored:
        ours, theirs = _number(model, regions), _number(source, stored)
        theirs = theirs if regions or stored else theirs.split()[0]
        texts.append(f"its output layer is new, for {ours} instead of {theirs}")
    if model.in_channels != source.in_channels:
        texts.append(f"its first layer averages {source.in_channels} input channels for {model.in_channels}")
    return texts


def _number(network: VNet, regions: Sequence[Region]) -> str:
    count = len(regions) or network.num_classes - 1
    word = "region" if regions else "class"
    return f"1 {word}" if count == 1 else f"{count} {'regions' if regions else 'classes'}"


def _warn_of_known_cases(path: str, validation: Sequence[str]) -> None:
    known = sorted(set(validation) & set(checkpoint.load(path).get("training", ())))
    if known:
        names = ", ".join(map(printable, known[:5])) + (" and others" if len(known) > 5 else "")
        warn(
            f"{path} was trained on {len(known)} of the {len(validation)} cases that this run holds out, if "
            f"they are the same ({names}): their Dice is not that of new cases"
        )


def prepare(model: nn.Module, init: str | None, stages: int, resumes: bool, described: dict[str, Any]) -> None:
    """Gives the network of a run its first weights, and freezes its first stages.

    Args:
        model: the network; a VNet if there is a checkpoint.
        init: the checkpoint, or None.
        stages: how many to freeze.
        resumes: whether the run has weights of its own already.
        described: what the run's checkpoints say about its data. A warning names the held-out cases that the
            checkpoint's own run was trained on.

    Raises:
        InputError: as `start_from`.
    """
    if init is None:
        return
    assert isinstance(model, VNet)
    if not resumes:
        different = start_from(model, init, stored_regions(described), described)
        say(f"weights: of {init}" + (f"; {different}" if different else ""))
        _warn_of_known_cases(init, described["validation"])
    freeze(model, stages)
