"""AdamW, which also writes copies of the weights in half precision and moves an average of the weights.

It is no registered operator: nothing differentiates, exports or compiles an update.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.ops.many_tensors import update_all


class AdamWeights(NamedTuple):
    """A tensor of weights, and what belongs to it, of the same shape and on the same device.

    Args:
        weight: float32.
        gradient: floating point.
        momentum: as `weight`, the moving average of gradients. It starts with zeros.
        square: as `weight`, the moving average of their squares. It starts with zeros.
        step: (), float32, the number of updates; see `advance`.
        copy: None, or a floating point tensor that is set to the rounded weight.
        average: None, or as `weight`, the moving average of the weights.
    """

    weight: Tensor
    gradient: Tensor
    momentum: Tensor
    square: Tensor
    step: Tensor
    copy: Tensor | None = None
    average: Tensor | None = None


class AdamSettings(NamedTuple):
    """What is the same for many tensors.

    Args:
        rate: the learning rate; for the kernel a tensor (), float32, on the device of the weights.
        betas: the factors of momenta and squares, from 0 to below 1.
        epsilon: what is added to the square root.
        weight_decay: by how much of the learning rate the weights shrink.
        grad_scale: None, or what the gradients are divided by, a tensor ().
        found_inf: None, or a tensor (); unless it is zero, all but the averages stays as it is.
        average_decay: of the averages, a tensor (); None if no tensor has one.
    """

    rate: float | Tensor
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    average_decay: Tensor | None = None


@torch.no_grad()
def advance(steps: list[Tensor], found_inf: Tensor | None = None) -> None:
    """Counts the update that comes next, in place, unless it is to be skipped.

    Args:
        steps: numbers of updates, float32, on one device.
        found_inf: None, or a tensor () of 0 or 1; with 1 all stay.
    """
    if not steps:
        return
    if found_inf is None:
        torch._foreach_add_(steps, 1)
    else:
        torch._foreach_add_(steps, [1 - found_inf] * len(steps))


@torch.no_grad()
def adamw(tensors: Iterable[AdamWeights], settings: AdamSettings) -> None:
    """Updates weights, momenta, squares, copies and averages in place.

    The kernel reads nothing on the host, so that a CUDA graph can hold it.

    Args:
        tensors: to be updated; their steps are advanced already.
        settings: of all of them.

    Source:
        torch.optim.AdamW, without `amsgrad`.
    """
    update_all("adamw", tensors, settings, settings.rate, adamw_definition)


@torch.no_grad()
def adamw_definition(tensors: AdamWeights, settings: AdamSettings) -> None:
    """`adamw` in plain PyTorch, for one tensor. The kernel is tested against it, and it runs where the kernel can't."""
    weight, gradient, momentum, square, step, copy, average = tensors
    rate, (beta1, beta2) = settings.rate, settings.betas
    rate = rate.double() if isinstance(rate, Tensor) else rate
    gradient, momentum, square = (tensor.to(weight.dtype) for tensor in (gradient, momentum, square))
    if settings.grad_scale is not None:
        gradient = gradient * settings.grad_scale.to(weight.dtype).reciprocal()
    kept = weight, tensors.momentum, tensors.square
    momentum = momentum.lerp(gradient, 1 - beta1)
    square = square.mul(beta2).addcmul(gradient, gradient, value=1 - beta2)
    # numbers in float64, as PyTorch has them on the host
    step_size, root = rate / (1 - beta1 ** step.double()), (1 - beta2 ** step.double()).sqrt()
    denominator = (square.sqrt() / root.to(weight.dtype)).add_(settings.epsilon)
    decayed = weight * _number(1 - rate * settings.weight_decay, weight)
    weight = decayed + momentum * -step_size.to(weight.dtype) / denominator
    for old, new in zip(kept, (weight, momentum, square), strict=True):
        old.copy_(new if settings.found_inf is None else torch.where(settings.found_inf == 0, new, old))
    if copy is not None:
        copy.copy_(tensors.weight)
    if average is not None and settings.average_decay is not None:
        average.sub_(tensors.weight).mul_(settings.average_decay).add_(tensors.weight)


def _number(value: float | Tensor, weight: Tensor) -> float | Tensor:
    return value.to(weight.dtype) if isinstance(value, Tensor) else value
