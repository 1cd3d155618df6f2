"""Convolutions of the network: PyTorch's own, except for a gradient that is wrong or slow on a CPU, and for rewrites
that are faster on a GPU.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vnet_fast.nn.norm import Norm
from vnet_fast.ops import convolution_choice, dispatch
from vnet_fast.ops.convolution import forward, grad_input, grad_weight


def convolve(
    convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor, norm: Norm | None = None
) -> tuple[Tensor, Tensor | None]:
    """A convolution, and its bias if the caller has to add it.

    Where the kernels run, the fused activation adds the bias at no cost. Elsewhere the convolution adds it.

    Args:
        convolution: padded with zeros.
        x: (N, C, D, H, W).
        norm: None, or a fixed one that is folded into the convolution.

    Returns:
        (N, C', D', H', W'), and None or the bias (C',).
    """
    weight, bias = _weight(convolution), convolution.bias
    if norm is not None:
        weight, bias = norm.folded(convolution, weight)
    if dispatch.kernels_for("add_prelu", x) is None:
        return _convolve(convolution, x, weight, bias), None
    return _convolve(convolution, x, weight, None), bias


def _weight(convolution: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    # a training step may keep a copy of the weight in its precision
    copy: Tensor | None = getattr(convolution, "compute_weight", None)
    return convolution.weight if copy is None else copy


def _convolve(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(convolution, nn.ConvTranspose3d):
        return F.conv_transpose3d(x, weight, bias, convolution.stride)
    if convolution.stride[0] == 1:
        if _is_coarse(convolution, x):
            apply: Callable[..., Tensor] = _CoarseConvolution.apply
            return apply(*_autocast("cpu", x, weight, bias))
        if convolution_choice.can_rewrite(x):
            x, weight, bias = _autocast(x.device.type, x, weight, bias)
            if convolution_choice.has_choice(x, weight):
                return _rewritten(x, weight, bias)
    return F.conv3d(x, weight, bias, convolution.stride, convolution.padding)


def _is_coarse(convolution: nn.Conv3d, x: Tensor) -> bool:
    """Whether a gradient is needed on a CPU, of a volume smaller than the kernel."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and convolution.kernel_size[0] > min(x.shape[2:])


def _autocast(device: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of a convolution in autocast's dtype, if it is enabled, as PyTorch's own convolutions take them."""
    if not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _rewritten(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    apply: Callable[..., Tensor] = _RewrittenConvolution.apply
    y = apply(x.contiguous(memory_format=torch.channels_last_3d), weight)
    return y if bias is None else y + bias.reshape(-1, 1, 1, 1)


class _RewrittenConvolution(torch.autograd.Function):
    """A convolution of stride 1 that keeps the shape, each pass by the rewrite that is chosen for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolution_choice.compute("forward", x, weight, lambda rewrite: forward(rewrite, x, weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        compute, grad_x, grad_w = convolution_choice.compute, None, None
        if ctx.needs_input_grad[0]:
            grad_x = compute("grad_input", x, weight, lambda rewrite: grad_input(rewrite, grad_y, x, weight))
        if ctx.needs_input_grad[1]:
            grad_w = compute("grad_weight", x, weight, lambda rewrite: grad_weight(rewrite, grad_y, x, weight))
        return grad_x, grad_w


class Convolution(nn.Conv3d):
    """PyTorch's Conv3d, run as `convolve` runs it, with its bias: for a layer without activation."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C', D', H', W') of (N, C, D, H, W)."""
        return _convolve(self, x, _weight(self), self.bias)


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
