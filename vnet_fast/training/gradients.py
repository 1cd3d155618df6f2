"""Clipping of gradients by their common norm, on the device, without waiting for it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# of PyTorch's clip_grad_norm_, which it keeps from dividing by zero
EPSILON = 1e-6


@torch.no_grad()
def excess_of(gradients: Sequence[Tensor], largest: float, scale: Tensor | None = None) -> Tensor:
    """How many times the norm of all gradients together exceeds the largest that is allowed.

    Args:
        gradients: floating point, of any types, on one device.
        largest: norm that is allowed.
        scale: None, or the factor of a scaled loss, a tensor (); the norm is that of the gradients without it.

    Returns:
        (), float32: 1 or more; NaN or infinite if a gradient is.

    Source:
        torch.nn.utils.clip_grad_norm_, whose coefficient is 1 / excess. Deviation: norms are float32, whatever the type
        of the gradients.
    """
    norms = [norm for group in _by_type(gradients) for norm in torch._foreach_norm(group, 2.0, torch.float32)]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if scale is not None:
        norm = norm / scale
    return ((norm + EPSILON) / largest).clamp(min=1)


@torch.no_grad()
def divide(gradients: Sequence[Tensor], excess: Tensor) -> None:
    """Divides gradients by what `excess_of` returned, in place.

    Args:
        gradients: floating point, on one device.
        excess: (), float32, on the same device.
    """
    # looking at a number on a CPU is no waiting, and most gradients need no pass
    if excess.device.type == "cpu" and excess == 1:
        return
    for group in _by_type(gradients):
        torch._foreach_mul_(group, excess.reciprocal().to(group[0].dtype))


def _by_type(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Groups of one type, because PyTorch updates many tensors in one launch only if they have one."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(gradient.dtype, []).append(gradient)
    return list(groups.values())
