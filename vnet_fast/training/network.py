"""The network of a run, and its training step."""

from collections.abc import Sequence

import torch
from torch import nn

from vnet_fast.errors import InputError
from vnet_fast.nn.regions import RegionLoss
from vnet_fast.nn.vnet import VNet
from vnet_fast.regions import Region
from vnet_fast.run.configuration import DICE, DICE_CE, LOSSES, Config
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step


def make_vnet(config: Config, num_classes: int, channels: int = 1) -> VNet:
    """The V-Net of a run, for volumes of so many channels."""
    return VNet(channels, num_classes, **config.network)


def make_loss(config: Config, regions: Sequence[Region]) -> nn.Module:
    """The loss of a run, whose classes may be regions.

    Raises:
        InputError: if its loss is not one of regions, which a data set has declared.
    """
    if not regions:
        return LOSSES[config.loss]()
    if config.loss not in (DICE, DICE_CE):
        raise InputError("--loss", f"is {config.loss}, and the classes are regions", f"Give {DICE} or {DICE_CE}")
    return RegionLoss([region.labels for region in regions], squared=config.loss == DICE)


def make_training_step(
    model: nn.Module, config: Config, autocast: torch.dtype | None, graph: bool, regions: Sequence[Region] = ()
) -> Step:
    """The training step of a run.

    Args:
        model: the network, on its device.
        config: of the run.
        autocast: the dtype of mixed precision, or None.
        graph: whether it may be one CUDA graph.
        regions: the classes, if they are regions of labels.
    """
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.momentum, config.weight_decay)
    graph = graph and not config.no_graph
    loss = make_loss(config, regions).to(next(model.parameters()).device)
    return Step(model, loss, optimizer, autocast, None, graph, config.clip, config.ema)
