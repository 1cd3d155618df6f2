"""The network of a run, and its training step."""

import torch
from torch import nn

from vnet_fast.data.training_data import Data
from vnet_fast.errors import InputError
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.regions import RegionLoss
from vnet_fast.nn.vnet import VNet
from vnet_fast.run.configuration import LOSSES, Config
from vnet_fast.run.labels import DICE, DICE_CE
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step


def make_vnet(config: Config, num_classes: int, channels: int = 1) -> VNet:
    """The V-Net of a run, for volumes of so many channels."""
    return VNet(channels, num_classes, **config.network)


def make_loss(config: Config, data: Data | None = None) -> nn.Module:
    """The loss of a run, whose classes may be regions, and whose masks may have a label to ignore.

    Raises:
        InputError: if its loss knows neither, and the data set has declared one of them.
    """
    ignored = data.num_classes if data and data.ignored is not None else None
    if data is None or (not data.regions and ignored is None):
        return LOSSES[config.loss]()
    if config.loss not in (DICE, DICE_CE):
        cause = "the classes are regions" if data.regions else "the masks have a label to ignore"
        raise InputError("--loss", f"is {config.loss}, and {cause}", f"Give {DICE} or {DICE_CE}")
    if data.regions:
        return RegionLoss([region.labels for region in data.regions], config.loss == DICE, ignored)
    loss = LOSSES[config.loss]()
    dice = loss.dice if isinstance(loss, DiceCELoss) else loss
    assert isinstance(dice, DiceLoss)
    dice.ignore_index = ignored
    return loss


def make_training_step(
    model: nn.Module, config: Config, autocast: torch.dtype | None, graph: bool, data: Data | None = None
) -> Step:
    """The training step of a run.

    Args:
        model: the network, on its device.
        config: of the run.
        autocast: the dtype of mixed precision, or None.
        graph: whether it may be one CUDA graph.
        data: of the run; None for classes that are labels, all of which count.
    """
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.momentum, config.weight_decay)
    graph = graph and not config.no_graph
    loss = make_loss(config, data).to(next(model.parameters()).device)
    return Step(model, loss, optimizer, autocast, None, graph, config.clip, config.ema)
