"""Stages of a network whose weights stay as they are."""

from vnet_fast.nn.norm import Norm
from vnet_fast.nn.vnet import VNet


def freeze(model: VNet, stages: int) -> None:
    """Keeps the weights of the first stages, and of the down-convolutions between them, as they are.

    Batch norm in them keeps its running means too, and normalises by them, in training as in evaluation.

    Args:
        model: the network.
        stages: how many of the left path, from the highest resolution on, at most `model.levels`.

    Raises:
        ValueError: if there are not so many.
    """
    if not 0 <= stages <= model.levels:
        raise ValueError(f"stages must be from 0 to {model.levels}; got {stages}")
    for part in [*model.left[:stages], *model.down[: max(stages - 1, 0)]]:
        part.requires_grad_(False)
        for norm in part.modules():
            if isinstance(norm, Norm):
                norm.frozen = True
