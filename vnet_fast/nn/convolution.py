"""Convolutions of the network: PyTorch's own, except where kernels or rewrites are faster, and where PyTorch's are
wrong or hundreds of times as slow.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vnet_fast.devices import cpu_has_convolutions
from vnet_fast.nn.norm import Norm
from vnet_fast.ops import convolution_choice, cpu_convolution, cpu_strided, dispatch
from vnet_fast.ops.add_prelu import add_prelu
from vnet_fast.ops.convolution import forward, grad_input, grad_weight
from vnet_fast.ops.eager import is_transformed
from vnet_fast.ops.onednn import gathered_weight_gradient


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
    weight, bias = _folded(convolution, norm)
    if dispatch.kernels_for("add_prelu", x) is None:
        return _convolve(convolution, x, weight, bias), None
    return _convolve(convolution, x, weight, None), bias


def _weight(convolution: nn.Conv3d | nn.ConvTranspose3d) -> Tensor:
    # a training step may keep a copy of the weight in its precision
    copy: Tensor | None = getattr(convolution, "compute_weight", None)
    return convolution.weight if copy is None else copy


def convolve_prelu(
    convolution: nn.Conv3d | nn.ConvTranspose3d,
    x: Tensor,
    slope: Tensor,
    norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """PReLU of a convolution + residual, in one pass where a kernel does it.

    Args:
        convolution, x, norm: as for `convolve`.
        slope: (C',).
        residual: None, (N, C', D', H', W'), or (N, 1, D', H', W') for every channel.

    Returns:
        (N, C', D', H', W').
    """
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        operands = _folded(convolution, norm)
        if _is_filtered(convolution, x) and not is_transformed(*operands, slope, residual):
            return cpu_convolution.predict(_narrow(x), *operands, slope, residual)
        if residual is None and _is_strided(convolution, x) and not is_transformed(*operands, slope):
            transposed = isinstance(convolution, nn.ConvTranspose3d)
            return cpu_strided.convolve(_narrow(x), *operands, transposed, slope)
    y, bias = convolve(convolution, x, norm)
    return add_prelu(y, slope, bias, residual)


def _folded(convolution: nn.Conv3d | nn.ConvTranspose3d, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    weight = _weight(convolution)
    return (weight, convolution.bias) if norm is None else norm.folded(convolution, weight)


def _is_filtered(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor) -> bool:
    """Whether the CPU's kernels are for a convolution."""
    fits = isinstance(convolution, nn.Conv3d) and max(convolution.stride) == 1 and x.device.type == "cpu"
    # keeps the shape
    fits = fits and convolution.padding[0] == convolution.kernel_size[0] // 2
    return fits and cpu_convolution.takes(_narrow(x), _weight(convolution))


def _is_strided(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor) -> bool:
    """Whether the CPU's kernels of stride 2 are for a convolution."""
    transposed = isinstance(convolution, nn.ConvTranspose3d)
    fits = convolution.stride == convolution.kernel_size and not any(convolution.padding) and x.device.type == "cpu"
    return fits and cpu_strided.takes(_narrow(x), _weight(convolution), transposed)


def _narrow(x: Tensor) -> Tensor:
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def _convolve(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    is_plain = not is_transformed(weight, bias)
    if is_plain and _is_filtered(convolution, x):
        run = cpu_convolution.convolve if torch.is_grad_enabled() else cpu_convolution.predict
        return run(_narrow(x), weight, bias)
    if is_plain and _is_strided(convolution, x):
        return cpu_strided.convolve(_narrow(x), weight, bias, isinstance(convolution, nn.ConvTranspose3d))
    if x.device.type == "cpu" and cpu_convolution.sees_operators(x):
        narrow = _narrow(x).dtype
        if not cpu_has_convolutions(narrow):
            # of the same rounded numbers
            x, weight = x.to(narrow).float(), weight.to(narrow).float()
            with torch.autocast("cpu", enabled=False):
                return _by_pytorch(convolution, x, weight, None if bias is None else bias.to(narrow).float()).to(narrow)
    return _by_pytorch(convolution, x, weight, bias)


def _by_pytorch(convolution: nn.Conv3d | nn.ConvTranspose3d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(convolution, nn.ConvTranspose3d):
        return F.conv_transpose3d(x, weight, bias, convolution.stride)
    if max(convolution.stride) == 1:
        if _is_coarse(convolution, x):
            operands = _autocast("cpu", x, weight, bias)
            if is_transformed(x, weight, bias):
                return _wide(*operands)
            apply: Callable[..., Tensor] = _CoarseConvolution.apply
            return apply(*operands)
        if convolution_choice.can_rewrite(x):
            x, weight, bias = _autocast(x.device.type, x, weight, bias)
            if convolution_choice.has_choice(x, weight):
                return _rewritten(x, weight, bias)
    return F.conv3d(x, weight, bias, convolution.stride, convolution.padding)


def _is_coarse(convolution: nn.Conv3d, x: Tensor) -> bool:
    """Whether a gradient is needed on a CPU, of a volume smaller than the kernel."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and convolution.kernel_size[0] > min(x.shape[2:])


def _wide(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution in float32 or wider, whose gradients are right for any volume; in the type of `x`."""
    dtype, padding = torch.promote_types(x.dtype, torch.float32), [length // 2 for length in weight.shape[2:]]
    with torch.autocast("cpu", enabled=False):
        y = F.conv3d(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), 1, padding)
    return y.to(x.dtype)


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
    """PyTorch's Conv3d, run as `convolve` runs it, with its bias: for a layer without activation, or with hooks."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C', D', H', W') of (N, C, D, H, W)."""
        return _convolve(self, x, _weight(self), self.bias)


class UpConvolution(nn.ConvTranspose3d):
    """PyTorch's ConvTranspose3d, run as `convolve` runs it, with its bias."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C', D', H', W') of (N, C, D, H, W); its size follows from the stride."""
        return _convolve(self, x, _weight(self), self.bias)


class _CoarseConvolution(torch.autograd.Function):
    """A convolution of stride 1 that keeps the shape, for volumes smaller than its kernel, on a CPU.

    See `gathered_weight_gradient` for why.
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
            grad_weight = gathered_weight_gradient(x, grad_y, weight.shape)
        if ctx.has_bias:
            grad_bias = grad_y.sum((0, 2, 3, 4))
        return grad_x, grad_weight, grad_bias
