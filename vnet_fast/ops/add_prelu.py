"""PReLU of x + bias + residual, as one operation: the activation of every layer of the network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops import cpu_activation
from vnet_fast.ops.add_prelu_direct import add_prelu_directly, add_prelu_join_directly, join_by_kernels, new_joined
from vnet_fast.ops.channels_last import add_channels, has_rows
from vnet_fast.ops.dispatch import kernels_for, load_kernels
from vnet_fast.ops.eager import is_eager, is_transformed
from vnet_fast.ops.operator import operator
from vnet_fast.ops.prelu import prelu, prelu_gradients


def add_prelu(x: Tensor, slope: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """PReLU of x + bias + residual.

    Args:
        x: (N, C, D, H, W), floating point.
        slope: (C,), the factor for negative values of each channel.
        bias: None or (C,).
        residual: None, (N, C, D, H, W), or (N, 1, D, H, W) for every channel.

    Returns:
        (N, C, D, H, W), the type and layout of `x`.

    Source:
        He et al. 2015 (PReLU); the residual of a V-Net stage is added before the activation.
    """
    if residual is not None and residual.shape[1] == x.shape[1]:
        residual = residual.to(x.dtype)
    kernels = kernels_for("add_prelu", x) if is_eager(x) else None
    plan = None if kernels is None else kernels.forward_plan(x, slope, bias, residual)
    if plan is not None:
        return add_prelu_directly(kernels, plan, x, slope, bias, residual)
    if is_transformed(x, slope, bias, residual):
        return add_prelu_definition(x, slope, bias, residual)
    y: Tensor = torch.ops.vnet_fast.add_prelu(x, slope, bias, residual)[0]
    return y


def add_prelu_join(x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> Tensor:
    """PReLU of x + bias, concatenated with `skip` along the channels.

    The activation is written directly into its half of the result. The skip is copied, because the down-convolution,
    which reads it too, needs a dense tensor.

    Args:
        x: (N, C, D, H, W), floating point.
        slope: (C,).
        bias: None or (C,).
        skip: (N, C', D, H, W).

    Returns:
        (N, C + C', D, H, W), the type and layout of `x`.
    """
    skip = skip.to(x.dtype)
    kernels = kernels_for("add_prelu", x) if is_eager(x) else None
    if kernels is not None and kernels.forward_plan(x, slope, bias) is not None:
        return add_prelu_join_directly(kernels, x, slope, bias, skip)
    if is_transformed(x, slope, bias, skip):
        return torch.cat([add_prelu_definition(x, slope, bias, None), skip], 1)
    joined: Tensor = torch.ops.vnet_fast.add_prelu_join(x, slope, bias, skip)[0]
    return joined


def add_prelu_definition(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """`add_prelu` in plain PyTorch. The kernel is tested against it, and it runs where the kernel can't."""
    return F.prelu(_add(x, bias, residual), slope.to(x.dtype))


def _add_prelu_on_host(
    x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """The definition by the CPU's kernels, or by operations that are fast on channels-last volumes of a CPU."""
    if cpu_activation.takes(x):
        return cpu_activation.add_prelu(x, slope, bias, residual, out)
    y = prelu(_add(x, bias, residual), slope.to(x.dtype))
    return y if out is None else out.copy_(y)


def add_prelu_gradients_definition(
    grad_y: Tensor, x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of `add_prelu` in plain PyTorch.

    Returns:
        grad_x, in the dtype of `x`, which is the residual's gradient too; grad_slope and grad_bias, (C,) in float32
        (float64 for float64); grad_bias is None without a bias.
    """
    z = _add(x, bias, residual)
    others = [axis for axis in range(z.ndim) if axis != 1]
    wide = torch.promote_types(z.dtype, torch.float32)
    grad_x, grad_slope = prelu_gradients(grad_y, z, slope.to(z.dtype))
    return grad_x, grad_slope, None if bias is None else grad_x.sum(others, dtype=wide)


def _add(x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if bias is not None:
        bias = bias.to(x.dtype)
        x = add_channels(x, bias) if has_rows(x) else x + bias.reshape(-1, *[1] * (x.ndim - 2))
    return x if residual is None else x + residual.to(x.dtype)


def _add_prelu_kernels(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> Any:
    return kernels_for("add_prelu", x, x, slope, bias, residual)


@operator("vnet_fast::add_prelu", differentiable=True)
def _add_prelu(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """y, and the bits that the kernel keeps for the backward pass; none where the definition runs."""
    kernels = _add_prelu_kernels(x, slope, bias, residual)
    if kernels is not None:
        y, negative = kernels.add_prelu(x, slope, bias, residual)
        return y, negative
    return _add_prelu_on_host(x, slope, bias, residual), x.new_empty((0,), dtype=torch.uint8)


@_add_prelu.register_fake
def _(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    kernels = _add_prelu_kernels(x, slope, bias, residual)
    return torch.empty_like(x), x.new_empty((0,), dtype=torch.uint8) if kernels is None else kernels.new_negative(x)


@operator("vnet_fast::add_prelu_join", differentiable=True)
def _add_prelu_join(x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor]:
    kernels = _add_prelu_kernels(x, slope, bias, None)
    if kernels is not None:
        joined, negative, _ = join_by_kernels(kernels, x, slope, bias, skip)
        return joined, negative
    joined = new_joined(x, skip)
    _add_prelu_on_host(x, slope, bias, None, joined[:, : x.shape[1]])
    joined[:, x.shape[1] :] = skip
    return joined, x.new_empty((0,), dtype=torch.uint8)


@_add_prelu_join.register_fake
def _(x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor]:
    kernels = _add_prelu_kernels(x, slope, bias, None)
    negative = x.new_empty((0,), dtype=torch.uint8) if kernels is None else kernels.new_negative(x)
    return new_joined(x, skip), negative


@operator("vnet_fast::add_prelu_backward")
def _add_prelu_backward(grad_y: Tensor, y: Tensor, negative: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # the forward pass was run by the kernels, so they are there
    kernels: Any = load_kernels("add_prelu")
    grad_x, grad_slope, grad_bias = kernels.add_prelu_backward([grad_y], y, negative, slope)
    return grad_x, grad_slope, grad_bias


@_add_prelu_backward.register_fake
def _(grad_y: Tensor, y: Tensor, negative: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    last = torch.channels_last_3d if y.ndim == 5 else torch.channels_last
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=last)
    grad_slope, grad_bias = (torch.empty(y.shape[1], dtype=torch.float32, device=y.device) for _ in range(2))
    return grad_x, grad_slope, grad_bias


@operator("vnet_fast::add_prelu_host_backward")
def _add_prelu_host_backward(
    grad_y: Tensor, x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, slope and bias; an empty one without a bias."""
    by_kernels = cpu_activation.takes(x)
    gradients = cpu_activation.add_prelu_gradients if by_kernels else add_prelu_gradients_definition
    grad_x, grad_slope, grad_bias = gradients(grad_y, x, slope, bias, residual)
    return grad_x, grad_slope, x.new_empty((0,)) if bias is None or grad_bias is None else grad_bias


@_add_prelu_host_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    grad_slope = x.new_empty((x.shape[1],), dtype=wide)
    return torch.empty_like(x), grad_slope, x.new_empty((0,)) if bias is None else torch.empty_like(grad_slope)


def _save_add_prelu(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, slope, bias, residual = inputs
    y, negative = output
    ctx.mark_non_differentiable(negative)
    _save(ctx, x, slope, bias, residual, y, negative)


def _save_add_prelu_join(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, slope, bias, _ = inputs
    joined, negative = output
    ctx.mark_non_differentiable(negative)
    ctx.channels = x.shape[1]
    _save(ctx, x, slope, bias, None, joined, negative)


def _save(
    ctx: Any,
    x: Tensor,
    slope: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    negative: Tensor,
) -> None:
    ctx.types = [None if tensor is None else tensor.dtype for tensor in (slope, bias, residual)]
    ctx.one_channel = residual is not None and residual.shape[1] != x.shape[1]
    ctx.by_kernel = negative.shape[0] > 0
    # the kernel needs neither x nor the residual again, and the definition does not need y
    if ctx.by_kernel:
        ctx.save_for_backward(slope, y, negative)
    else:
        ctx.save_for_backward(slope, x, bias, residual)


def _add_prelu_gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, slope, bias and residual; None for one that is not given."""
    if ctx.by_kernel:
        slope, y, negative = ctx.saved_tensors
        y = y[:, : grad_y.shape[1]]
        grad_x, grad_slope, grad_bias = torch.ops.vnet_fast.add_prelu_backward(grad_y, y, negative, slope)
    else:
        slope, x, bias, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            # a graph of the backward pass is made
            grad_x, grad_slope, grad_bias = add_prelu_gradients_definition(grad_y, x, slope, bias, residual)
        else:
            operands = grad_y, x, slope, bias, residual
            grad_x, grad_slope, grad_bias = torch.ops.vnet_fast.add_prelu_host_backward(*operands)
    slope_type, bias_type, residual_type = ctx.types
    grad_residual = None
    if residual_type is not None and ctx.needs_input_grad[3]:
        grad_residual = grad_x.sum(1, keepdim=True) if ctx.one_channel else grad_x
        grad_residual = grad_residual.to(residual_type)
    if bias_type is not None:
        grad_bias = grad_bias.to(bias_type)
    return grad_x, grad_slope.to(slope_type), None if bias_type is None else grad_bias, grad_residual


def _add_prelu_join_gradients(ctx: Any, grad_joined: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _add_prelu_gradients(ctx, grad_joined[:, : ctx.channels])
    return *grads[:3], grad_joined[:, ctx.channels :]


_add_prelu.register_autograd(lambda ctx, grad_y, _: _add_prelu_gradients(ctx, grad_y), setup_context=_save_add_prelu)
_add_prelu_join.register_autograd(_add_prelu_join_gradients, setup_context=_save_add_prelu_join)
