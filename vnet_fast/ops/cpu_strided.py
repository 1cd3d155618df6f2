"""Convolutions 2x2x2 of stride 2 on a CPU, and their transposes, by the kernels."""

from typing import Any

import torch
from torch import Tensor

from vnet_fast.kernels import cpu_strided as kernels
from vnet_fast.ops.cpu_convolution import are_there, sees_operators
from vnet_fast.ops.cpu_library import library
from vnet_fast.ops.operator import operator

_FORMAT = torch.channels_last_3d


def takes(x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether the operator is for a convolution: 2x2x2 of stride 2 on a CPU, of channels in multiples of 8.

    Args:
        x: (N, C, D, H, W), or (N, K, D, H, W) of a transposed convolution; float32 or bfloat16.
        weight: (K, C, 2, 2, 2), float32.
        transposed: whether it is a transposed convolution.
    """
    return kernels.supports(x, weight, transposed) and sees_operators(x, weight) and are_there()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, slope: Tensor | None = None) -> Tensor:
    """A convolution, or a transposed one, and with a slope its PReLU, which has no gradient.

    Args:
        x, weight, transposed: that `takes` accepts.
        bias: None or (K,), (C,) of a transposed convolution.
        slope: as the bias.

    Returns:
        (N, K, D / 2, H / 2, W / 2), or (N, C, 2 D, 2 H, 2 W); channels-last, the type of `x`.
    """
    y: Tensor = torch.ops.vnet_fast.cpu_strided(x, weight, bias, slope, transposed)
    return y


@operator("vnet_fast::cpu_strided", differentiable=True, device_types="cpu")
def _strided(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None, transposed: bool) -> Tensor:
    run = kernels.scatter if transposed else kernels.gather
    y: Tensor = run(library(), _laid_out(x), _laid_out(weight), _wide(bias), _wide(slope))
    return y


@operator("vnet_fast::cpu_strided_backward", device_types="cpu")
def _backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, transposed: bool, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight; empty ones that are not asked for."""
    x, grad_y = _laid_out(x), _laid_out(grad_y.to(x.dtype))
    grad_x, grad_weight = x.new_empty((0,)), weight.new_empty((0,))
    if of_x:
        grad_x = (kernels.gather if transposed else kernels.scatter)(library(), grad_y, _laid_out(weight))
    if of_weight:
        grad_weight = kernels.weight_gradient(library(), *((grad_y, x) if transposed else (x, grad_y)))
    return grad_x, grad_weight


@_strided.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None, transposed: bool) -> Tensor:
    n, _, *shape = x.shape
    shape = [length * 2 if transposed else length // 2 for length in shape]
    channels = weight.shape[1 if transposed else 0]
    return torch.empty((n, channels, *shape), dtype=x.dtype, device=x.device, memory_format=_FORMAT)


@_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, transposed: bool, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=_FORMAT) if of_x else x.new_empty((0,))
    return grad_x, torch.empty_like(weight, memory_format=_FORMAT) if of_weight else weight.new_empty((0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, slope, ctx.transposed = inputs
    if slope is not None:
        raise RuntimeError("vnet_fast::cpu_strided has no gradient with a slope")
    ctx.save_for_backward(x, weight)
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
    operands = grad_y, x, weight, ctx.transposed, of_x, of_weight
    grad_x, grad_weight = torch.ops.vnet_fast.cpu_strided_backward(*operands)
    grad_bias = grad_y.sum((0, 2, 3, 4), dtype=torch.float32).to(ctx.bias_type) if of_bias else None
    return grad_x if of_x else None, grad_weight if of_weight else None, grad_bias, None, None


_strided.register_autograd(_gradients, setup_context=_save)


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=_FORMAT)


def _wide(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.float().contiguous()
