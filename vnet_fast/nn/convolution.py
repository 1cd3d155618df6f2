"""Convolutions of the network: PyTorch's own, except for a gradient that is wrong or slow on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vnet_fast.ops import dispatch


def convolve(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution, and its bias if the caller has to add it.

    Where the kernels run, the fused activation adds the bias at no cost. Elsewhere the convolution adds it.

    Args:
        convolution: with a bias, padded with zeros.
        x: (N, C, D, H, W).

    Returns:
        (N, C', D', H', W'), and None or the bias (C',).
    """
    deferred = dispatch.kernels_for("add_prelu", x) is not None
    weight, bias = convolution.weight, None if deferred else convolution.bias
    deferred_bias = convolution.bias if deferred else None
    if isinstance(convolution, nn.ConvTranspose3d):
        return F.conv_transpose3d(x, weight, bias, convolution.stride), deferred_bias
    coarse = convolution.kernel_size[0] > min(x.shape[2:]) and convolution.stride[0] == 1
    if coarse and x.device.type == "cpu" and torch.is_grad_enabled():
        if torch.is_autocast_enabled("cpu"):
            # as autocast does with the arguments of a convolution
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        apply: Callable[..., Tensor] = _CoarseConvolution.apply
        y = apply(x, weight, bias)
        return y, deferred_bias
    return F.conv3d(x, weight, bias, convolution.stride, convolution.padding), deferred_bias


class _CoarseConvolution(torch.autograd.Function):
    """A convolution of stride 1 that keeps the shape, for volumes smaller than its kernel, on a CPU.

    The weight's gradient is a matrix product of grad_y and of x, gathered for every tap. oneDNN's gradient (torch
    2.13, AVX-512 BF16) is partly unwritten in bfloat16, which shows as errors of 70 % of its norm, or NaN. In float32
    it is right, but takes up to ten times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = [length // 2 for length in weight.shape[2:]]
        ctx.has_bias = bias is not None
        return F.conv3d(x, weight, bias, 1, ctx.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            ones = [1, 1, 1]
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad_y, x, weight, None, ones, ctx.padding, ones, False, [0, 0, 0], 1, [True, False, False]
            )
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad_y, weight.shape, ctx.padding)
        if ctx.has_bias:
            grad_bias = grad_y.sum((0, 2, 3, 4))
        return grad_x, grad_weight, grad_bias


def _weight_gradient(x: Tensor, grad_y: Tensor, shape: torch.Size, padding: list[int]) -> Tensor:
    # channels last, so that only the gathered taps are copied and the result has the weight's layout
    d, h, w = padding
    x = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, w, w, h, h, d, d))
    for axis, length in enumerate(shape[2:], start=1):
        x = x.unfold(axis, length, 1)
    rows = grad_y.permute(0, 2, 3, 4, 1).flatten(0, 3)
    # (voxels, taps * C)
    taps = x.permute(0, 1, 2, 3, 5, 6, 7, 4).flatten(0, 3).flatten(1)
    return (rows.T @ taps).view(shape[0], *shape[2:], shape[1]).permute(0, 4, 1, 2, 3)
