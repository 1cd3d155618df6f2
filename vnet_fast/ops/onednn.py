"""oneDNN's convolutions on a CPU, in float32 where it lacks a volume's type, and a gradient that it gets wrong."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.devices import cpu_has_convolutions
from vnet_fast.ops.channels_last import add_channels, has_rows

_ONES = [1, 1, 1]
_FORMAT = torch.channels_last_3d
# numbers of a volume that are gathered at a time
GATHERED = 1 << 24


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1 that keeps the shape: (N, K, D, H, W), channels-last, the type of `x`."""
    dtype = _type_of(x)
    with torch.autocast("cpu", enabled=False):
        y = F.conv3d(x.to(dtype), weight.to(dtype), None, 1, _padding(weight)).to(x.dtype)
        y = y.contiguous(memory_format=_FORMAT)
    return y if bias is None else add_channels(y, bias.to(y.dtype)) if has_rows(y) else y + bias.reshape(-1, 1, 1, 1)


def gathered_weight_gradient(x: Tensor, grad_y: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of a weight as a matrix product of grad_y and of x, gathered for every tap.

    For volumes smaller than the kernel. oneDNN's gradient (torch 2.13, AVX-512 BF16) is partly unwritten in bfloat16,
    which shows as errors of 70 % of its norm, or NaN. In float32 it is right, but takes up to ten times as long.

    Args:
        x: (N, C, D, H, W).
        grad_y: (N, K, D, H, W), the gradient of a convolution of stride 1 that keeps the shape.
        shape: (K, C, d, h, w), of the weight.

    Returns:
        (K, C, d, h, w), channels-last.
    """
    taps, rows = _gathered(x, shape[2:]), grad_y.permute(0, 2, 3, 4, 1)
    # pieces along the longest axis; a volume smaller than the kernel along all of them is one
    axis = 1 + max(range(3), key=lambda axis: x.shape[2 + axis])
    length = max(1, GATHERED * taps.shape[axis] // taps.numel())
    pieces = zip(rows.split(length, axis), taps.split(length, axis), strict=True)
    products = (row.flatten(0, 3).T @ tap.flatten(0, 3).flatten(1) for row, tap in pieces)
    product: Tensor = next(products)
    for following in products:
        # bfloat16 would round every sum
        product = product.to(torch.promote_types(product.dtype, torch.float32)) + following
    return product.to(x.dtype).view(shape[0], *shape[2:], shape[1]).permute(0, 4, 1, 2, 3)


def _gathered(x: Tensor, taps: torch.Size) -> Tensor:
    """(N, D, H, W, d, h, w, C), a view of the padded volumes."""
    d, h, w = (length // 2 for length in taps)
    # channels last, so that only the gathered taps are copied and the result has the weight's layout
    x = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, w, w, h, h, d, d))
    for axis, length in enumerate(taps, start=1):
        x = x.unfold(axis, length, 1)
    return x.permute(0, 1, 2, 3, 5, 6, 7, 4)


def _gradients(grad_y: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _type_of(x)
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_y.to(dtype), x.to(dtype), weight.to(dtype), None, _ONES, _padding(weight), _ONES, False, [0, 0, 0], 1, mask
    )
    return gradients


def grad_input(grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `convolve` with respect to x: channels-last, the type of `x`."""
    grad = _gradients(grad_y, x, weight, [True, False, False])[0]
    return grad.to(x.dtype).contiguous(memory_format=_FORMAT)


def grad_weight(grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `convolve` with respect to the weight: channels-last, float32."""
    if min(x.shape[2:]) < weight.shape[2]:
        grad = gathered_weight_gradient(x, grad_y, weight.shape)
    else:
        grad = _gradients(grad_y, x, weight, [False, True, False])[1]
    return grad.float().contiguous(memory_format=_FORMAT)


def _padding(weight: Tensor) -> list[int]:
    return [length // 2 for length in weight.shape[2:]]


def _type_of(x: Tensor) -> torch.dtype:
    """The type of a volume, or float32 where oneDNN has no convolutions of it."""
    return x.dtype if cpu_has_convolutions(x.dtype) else torch.float32
