"""Stochastic gradient descent with momentum, which also writes copies of the weights in half precision.

It is no registered operator: nothing differentiates, exports or compiles an update.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.ops.many_tensors import update_all


class Weights(NamedTuple):
    """A tensor of weights, and what belongs to it, of the same shape and on the same device.

    Args:
        weight: float32.
        gradient: floating point.
        momentum: None, or as `weight`. It starts with zeros.
        copy: None, or a floating point tensor that is set to the rounded weight.
    """

    weight: Tensor
    gradient: Tensor
    momentum: Tensor | None = None
    copy: Tensor | None = None


@torch.no_grad()
def sgd(
    tensors: Iterable[Weights],
    rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    nesterov: bool = False,
) -> None:
    """Updates weights, momenta and copies in place.

    The kernel reads nothing on the host, so that a CUDA graph can hold it.

    Args:
        tensors: to be updated.
        rate: the learning rate; for the kernel a tensor (), float32, on the device of the weights.
        momentum: the momentum factor; with zero, momenta are not used.
        weight_decay: the factor of the weights that is added to the gradients.
        grad_scale: None, or what the gradients are divided by, a tensor ().
        found_inf: None, or a tensor (); unless it is zero, everything stays as it is.
        nesterov: whether the momentum is Nesterov's.

    Source:
        torch.optim.SGD, without dampening.
    """
    settings = rate, momentum, weight_decay, grad_scale, found_inf, nesterov
    entries = tensors if momentum else (entry._replace(momentum=None) for entry in tensors)
    update_all("sgd", entries, settings, rate, lambda entry, given: sgd_definition(entry, *given))


@torch.no_grad()
def sgd_definition(
    tensors: Weights,
    rate: float | Tensor,
    momentum: float,
    weight_decay: float,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    nesterov: bool = False,
) -> None:
    """`sgd` in plain PyTorch, for one tensor. The kernel is tested against it, and it runs where the kernel can't."""
    weight, gradient, buffer, copy = tensors
    gradient = gradient.to(weight.dtype)
    if grad_scale is not None:
        gradient = gradient * grad_scale.to(weight.dtype).reciprocal()
    if weight_decay:
        gradient = gradient.add(weight, alpha=weight_decay)
    direction, kept = gradient, buffer
    if momentum and buffer is not None:
        direction = kept = buffer.mul(momentum).add_(gradient)
        if nesterov:
            direction = gradient.add(kept, alpha=momentum)
    if isinstance(rate, Tensor):
        updated = weight.addcmul(direction, rate.to(weight.dtype), value=-1)
    else:
        updated = weight.add(direction, alpha=-rate)
    if found_inf is not None:
        updated = torch.where(found_inf == 0, updated, weight)
    weight.copy_(updated)
    if momentum and buffer is not None and kept is not None:
        buffer.copy_(kept if found_inf is None else torch.where(found_inf == 0, kept, buffer))
    if copy is not None:
        copy.copy_(weight)
