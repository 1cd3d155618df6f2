"""PReLU of normalised x + residual, as one operation: the activation of a network with normalisation."""

from typing import Any

import torch
from torch import Tensor

from vnet_fast.ops import cpu_activation
from vnet_fast.ops.add_prelu_direct import new_joined
from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.ops.eager import is_transformed
from vnet_fast.ops.norm_prelu_definition import (
    Sets,
    norm_prelu_definition,
    norm_prelu_gradients_definition,
    normalise_and_activate,
    statistics,
    wide_type,
)
from vnet_fast.ops.operator import operator

Statistics = tuple[Tensor, Tensor]


def norm_prelu(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None, sets: Sets
) -> tuple[Tensor, Statistics]:
    """PReLU of (x - mean) / sqrt(variance + eps) * weight + bias + residual.

    Args:
        x: (N, C, D, H, W), floating point.
        weight, bias: (C,).
        slope: (C,), the factor for negative values of each channel.
        residual: None, (N, C, D, H, W), or (N, 1, D, H, W) for every channel.
        sets: over which elements mean and variance are taken.

    Returns:
        (N, C, D, H, W), the type and layout of `x`; and mean and biased variance, (N or 1, groups), float32 (float64
        for float64), which have no gradient.

    Source:
        Ioffe and Szegedy 2015 (batch), Ulyanov et al. 2016 (instance), Wu and He 2018 (group); the residual of a V-Net
        stage is added before the activation.
    """
    if residual is not None and residual.shape[1] == x.shape[1]:
        residual = residual.to(x.dtype)
    if is_transformed(x, weight, bias, slope, residual):
        return norm_prelu_definition(x, weight, bias, slope, residual, sets), statistics(x.detach(), sets)
    y, mean, variance = torch.ops.vnet_fast.norm_prelu(x, weight, bias, slope, residual, *sets)
    return y, (mean, variance)


def norm_prelu_join(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, skip: Tensor, sets: Sets
) -> tuple[Tensor, Statistics]:
    """`norm_prelu` without residual, concatenated with `skip` along the channels.

    Args:
        x, weight, bias, slope, sets: as for `norm_prelu`.
        skip: (N, C', D, H, W).

    Returns:
        (N, C + C', D, H, W), the type and layout of `x`; and mean and variance.
    """
    skip = skip.to(x.dtype)
    if is_transformed(x, weight, bias, slope, skip):
        y = norm_prelu_definition(x, weight, bias, slope, None, sets)
        return torch.cat([y, skip], 1), statistics(x.detach(), sets)
    joined, mean, variance = torch.ops.vnet_fast.norm_prelu_join(x, weight, bias, slope, skip, *sets)
    return joined, (mean, variance)


@operator("vnet_fast::norm_prelu", differentiable=True)
def _norm_prelu(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None,
    groups: int, across_samples: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sets = Sets(groups, across_samples, eps)
    kernels = _kernels(x, weight, bias, slope, residual, sets)
    if kernels is not None:
        y, mean, variance = kernels.norm_prelu(x, weight, bias, slope, residual, sets)
        return y, mean, variance
    found = _statistics_on_host(x, sets)
    return _norm_prelu_on_host(x, weight, bias, slope, residual, found, sets), *found


def _statistics_on_host(x: Tensor, sets: Sets) -> Statistics:
    return cpu_activation.statistics(x, sets) if cpu_activation.takes(x) else statistics(x, sets)


def _norm_prelu_on_host(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None, found: Statistics, sets: Sets,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """By the CPU's kernels, or by operations that are fast on channels-last volumes of a CPU."""
    if cpu_activation.takes(x):
        return cpu_activation.norm_prelu(x, weight, bias, slope, residual, found, sets, out)
    y = normalise_and_activate(x, weight, bias, slope, residual, found, sets)
    return y if out is None else out.copy_(y)


@_norm_prelu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None,
    groups: int, across_samples: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x), *_new_statistics(x, Sets(groups, across_samples, eps))


@operator("vnet_fast::norm_prelu_join", differentiable=True)
def _norm_prelu_join(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, skip: Tensor,
    groups: int, across_samples: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sets = Sets(groups, across_samples, eps)
    joined = new_joined(x, skip)
    kernels = _kernels(x, weight, bias, slope, None, sets)
    if kernels is not None:
        found = kernels.norm_prelu(x, weight, bias, slope, None, sets, joined[:, : x.shape[1]])[1:]
    else:
        found = _statistics_on_host(x, sets)
        _norm_prelu_on_host(x, weight, bias, slope, None, found, sets, joined[:, : x.shape[1]])
    joined[:, x.shape[1] :] = skip
    return joined, *found


@_norm_prelu_join.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, skip: Tensor,
    groups: int, across_samples: bool, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return new_joined(x, skip), *_new_statistics(x, Sets(groups, across_samples, eps))


def _kernels(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None, sets: Sets) -> Any:
    kernels = kernels_for("norm_prelu", x)
    return kernels if kernels is not None and kernels.supports(x, weight, bias, slope, residual, sets) else None


def _new_statistics(x: Tensor, sets: Sets) -> Statistics:
    return x.new_empty(sets.shape(x), dtype=wide_type(x)), x.new_empty(sets.shape(x), dtype=wide_type(x))


@operator("vnet_fast::norm_prelu_backward")
def _norm_prelu_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None,
    mean: Tensor, variance: Tensor, groups: int, across_samples: bool, eps: float, wants_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """grad_x, the gradient of the residual, and those of weight, bias and slope."""
    sets = Sets(groups, across_samples, eps)
    # the gradient of one channel is a sum over channels, which the kernels do not take
    by_kernels = residual is None or residual.shape[1] == x.shape[1] or not wants_residual
    kernels = _kernels(x, weight, bias, slope, residual, sets) if by_kernels else None
    if kernels is not None:
        found = kernels.norm_prelu_backward(grad_y, x, weight, bias, slope, residual, mean, variance, sets)
    elif cpu_activation.takes(x):
        found = cpu_activation.norm_prelu_gradients(grad_y, x, weight, bias, slope, residual, (mean, variance), sets)
    else:
        found = norm_prelu_gradients_definition(grad_y, x, weight, bias, slope, residual, (mean, variance), sets)
    grad_x, grad_z, grad_weight, grad_bias, grad_slope = found
    if residual is None or not wants_residual:
        grad_z = _no_residual(x)
    elif residual.shape[1] != x.shape[1]:
        grad_z = grad_z.sum(1, keepdim=True)
    return grad_x, grad_z, grad_weight, grad_bias, grad_slope


@_norm_prelu_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None,
    mean: Tensor, variance: Tensor, groups: int, across_samples: bool, eps: float, wants_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_residual = _no_residual(x)
    if residual is not None and wants_residual:
        grad_residual = torch.empty_like(x) if residual.shape[1] == x.shape[1] else x.new_empty(residual.shape)
    weight, bias, slope = (x.new_empty(x.shape[1], dtype=wide_type(x)) for _ in range(3))
    return torch.empty_like(x), grad_residual, weight, bias, slope


def _no_residual(x: Tensor) -> Tensor:
    return x.new_empty((0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, slope, residual, *ctx.sets = inputs
    _save_tensors(ctx, (x, weight, bias, slope, residual), *output[1:])


def _save_join(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, slope, _, *ctx.sets = inputs
    ctx.channels = x.shape[1]
    _save_tensors(ctx, (x, weight, bias, slope, None), *output[1:])


def _save_tensors(ctx: Any, tensors: tuple[Any, ...], mean: Tensor, variance: Tensor) -> None:
    ctx.mark_non_differentiable(mean, variance)
    # zeros as the gradients of mean and variance would be a launch for each
    ctx.set_materialize_grads(False)
    ctx.types = [None if tensor is None else tensor.dtype for tensor in tensors]
    ctx.save_for_backward(*tensors, mean, variance)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, slope and residual."""
    x, weight, bias, slope, residual, mean, variance = ctx.saved_tensors
    wants_residual = residual is not None and ctx.needs_input_grad[4]
    grad_x, grad_residual, *vectors = torch.ops.vnet_fast.norm_prelu_backward(
        grad_y, x, weight, bias, slope, residual, mean, variance, *ctx.sets, wants_residual
    )
    grads = [grad_x, *vectors, grad_residual if wants_residual else None]
    return tuple(None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.types, strict=True))


def _of_norm_prelu(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * len(ctx.needs_input_grad)
    return *_gradients(ctx, grad_y), None, None, None


def _of_join(ctx: Any, grad_joined: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_joined is None:
        return (None,) * len(ctx.needs_input_grad)
    channels = ctx.channels
    return *_gradients(ctx, grad_joined[:, :channels])[:4], grad_joined[:, channels:], None, None, None


_norm_prelu.register_autograd(_of_norm_prelu, setup_context=_save)
_norm_prelu_join.register_autograd(_of_join, setup_context=_save_join)
