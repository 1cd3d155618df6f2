"""The network of a run, and its training step."""

import torch
from torch import nn

from vnet_fast.nn.vnet import VNet
from vnet_fast.run.configuration import LOSSES, Config
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step


def make_vnet(config: Config, num_classes: int, channels: int = 1) -> VNet:
    """The V-Net of a run, for volumes of so many channels."""
    return VNet(channels, num_classes, **config.network)


def make_training_step(model: nn.Module, config: Config, autocast: torch.dtype | None, graph: bool) -> Step:
    """The training step of a run.

    Args:
        model: the network, on its device.
        config: of the run.
        autocast: the dtype of mixed precision, or None.
        graph: whether it may be one CUDA graph.
    """
    optimizer = make_optimizer(model, config.optimizer, config.learning_rate, config.momentum, config.weight_decay)
    graph = graph and not config.no_graph
    return Step(model, LOSSES[config.loss](), optimizer, autocast, None, graph, config.clip, config.ema)
