"""PReLU of x + bias + residual, and its gradients.

Formula, for each channel c, with the bias and the residual optional:

    z = x + bias_c + residual
    y = z               if z > 0
        slope_c · z     otherwise

Derivative, where z = 0 takes the slope, as in PyTorch:

    grad_x      = grad_y · (1 if z > 0 else slope_c)     also the gradient of a full residual
    grad_bias_c  = Σ grad_x
    grad_slope_c = Σ grad_y · z  over z <= 0

Saved for the backward pass: y, which the next convolution saves anyway, and `negative`, one bit per element that is
set where z <= 0. x is not needed any more, and y may overwrite it; plain PyTorch saves z and y. The sign of y is not
enough, because a slope may become negative. Where the bit is set, z = y / slope_c. The division is taken out of the
sum: grad_slope_c = (Σ grad_y · y) / slope_c.

Where y is used several times, grad_y is the sum of the gradients of its uses, which the kernel adds in float32.

Layout: channels-last volumes, as rows (N·D·H·W, C). y and the gradients of its uses may be channel slices of a wider
tensor: rows of C channels, with a constant stride from row to row. Rows of more than 512 channels are cut into tiles,
a second axis of the grid.

Bytes moved per element of b bytes: forward 2 b + 1/8, and b more with a full residual; backward (2 + g) b + 1/8 for g
gradients. In plain PyTorch the three operations move 2 b, 3 b and 2 b, the backward pass 6 b, and 3 b more for each
further gradient.

Source:
    He, Zhang, Ren, Sun 2015, arXiv 1502.01852. Deviation: if a slope is too small to compute z from y, y and
    grad_slope use `SMALLEST_SLOPE` with the slope's sign instead; grad_x uses the true slope.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.add_prelu_layouts import (
    MEMORY_FORMAT,
    backward_plan,
    bits_shape,
    forward_plan,
    has_rows,
    supports,
)
from vnet_fast.kernels.launch import on_device_of
from vnet_fast.kernels.partial_sums import sum_all_partials, sum_partials

# how many gradients of y the backward kernel adds
MAX_GRADIENTS = 3

__all__ = [
    "MAX_GRADIENTS",
    "add_prelu",
    "add_prelu_backward",
    "add_prelu_backward_partials",
    "forward_plan",
    "new_negative",
    "sum_all_partials",
    "supports",
]


@triton.jit
def _recoverable(slope, SMALLEST: tl.constexpr):
    """The slope that y is computed with, at least SMALLEST away from zero, so that z = y / slope."""
    return tl.where(tl.abs(slope) < SMALLEST, tl.where(slope < 0, -SMALLEST, SMALLEST), slope)


@triton.jit
def _channels_of_tile(PADDED: tl.constexpr, TILES: tl.constexpr):
    """The channels of a program's tile, or the bytes of their bits."""
    channel = tl.arange(0, PADDED)
    if TILES > 1:
        channel += tl.program_id(1) * PADDED
    return channel


@triton.jit
def _load_rows(ptr, first_row, row, channel, inside, STRIDE: tl.constexpr):
    # 64-bit offset of the tile, 32-bit offsets within it
    offset = row[:, None] * STRIDE + channel[None, :]
    return tl.load(ptr + first_row * STRIDE + offset, mask=inside, other=0).to(tl.float32)


@triton.jit
def _add_prelu_forward_kernel(
    x_ptr,
    slope_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    negative_ptr,
    num_rows,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    ONE_CHANNEL_RESIDUAL: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    channel = _channels_of_tile(PADDED, TILES)
    channel_inside = channel < CHANNELS
    row_inside = row < num_rows - first_row
    inside = row_inside[:, None] & channel_inside[None, :]

    z = _load_rows(x_ptr, first_row, row, channel, inside, CHANNELS)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channel, mask=channel_inside, other=0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        if ONE_CHANNEL_RESIDUAL:
            # a vector, because Triton would move all of z through shared memory for a column
            z += tl.load(residual_ptr + first_row + row, mask=row_inside, other=0).to(tl.float32)[:, None]
        else:
            z += _load_rows(residual_ptr, first_row, row, channel, inside, CHANNELS)

    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)
    positive = z > 0
    y = tl.where(positive, z, z * _recoverable(slope, SMALLEST)[None, :])
    y_offset = row[:, None] * Y_STRIDE + channel[None, :]
    tl.store(y_ptr + first_row * Y_STRIDE + y_offset, y.to(y_ptr.dtype.element_ty), mask=inside)

    # not z <= 0, which would drop NaN from grad_slope
    bits = tl.where(positive, 0, 1).reshape(ROWS, PADDED // 8, 8)
    byte = tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2)
    byte_offset = row[:, None] * (TILES * PADDED // 8) + _channels_of_tile(PADDED // 8, TILES)[None, :]
    negative_ptr += first_row * (TILES * PADDED // 8)
    tl.store(negative_ptr + byte_offset, byte.to(tl.uint8), mask=row_inside[:, None])


@triton.jit
def _add_prelu_backward_kernel(
    grad_y_ptr, second_grad_y_ptr, third_grad_y_ptr, y_ptr, negative_ptr, slope_ptr, grad_x_ptr, partials_ptr, num_rows,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, GRAD_STRIDES: tl.constexpr,
    Y_STRIDE: tl.constexpr, WIDTH: tl.constexpr, SMALLEST: tl.constexpr, LOADS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    channel = _channels_of_tile(PADDED, TILES)
    channel_inside = channel < CHANNELS
    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)

    # the rows of a thread are ROWS / LOADS apart, so that their sum over axis 0 stays within the thread
    slope_sums = tl.zeros((ROWS // LOADS, PADDED), tl.float32)
    bias_sums = tl.zeros((ROWS // LOADS, PADDED), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for first_row in range(first, num_rows, tl.num_programs(0) * ROWS):
        row_inside = (row < num_rows - first_row)[:, None]
        inside = row_inside & channel_inside[None, :]
        grad_y = _load_rows(grad_y_ptr, first_row, row, channel, inside, GRAD_STRIDES[0])
        if second_grad_y_ptr is not None:
            grad_y += _load_rows(second_grad_y_ptr, first_row, row, channel, inside, GRAD_STRIDES[1])
        if third_grad_y_ptr is not None:
            grad_y += _load_rows(third_grad_y_ptr, first_row, row, channel, inside, GRAD_STRIDES[2])
        y = _load_rows(y_ptr, first_row, row, channel, inside, Y_STRIDE)
        byte_offset = row[:, None] * (TILES * PADDED // 8) + _channels_of_tile(PADDED // 8, TILES)[None, :]
        tile_ptr = negative_ptr + first_row * (TILES * PADDED // 8)
        byte = tl.load(tile_ptr + byte_offset, mask=row_inside, other=0).to(tl.int32)
        bits = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        negative = bits.reshape(ROWS, PADDED) != 0

        grad_x = tl.where(negative, grad_y * slope[None, :], grad_y)
        offset = row[:, None] * CHANNELS + channel[None, :]
        tl.store(grad_x_ptr + first_row * CHANNELS + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        grad_slope = tl.where(negative, grad_y * y, 0)
        slope_sums += tl.sum(grad_slope.reshape(LOADS, ROWS // LOADS, PADDED), axis=0)
        bias_sums += tl.sum(grad_x.reshape(LOADS, ROWS // LOADS, PADDED), axis=0)

    grad_slope = tl.div_rn(tl.sum(slope_sums, axis=0), _recoverable(slope, SMALLEST))
    partial = tl.program_id(0) * WIDTH + channel
    tl.store(partials_ptr + partial, grad_slope, mask=channel_inside)
    partial += tl.num_programs(0) * WIDTH
    tl.store(partials_ptr + partial, tl.sum(bias_sums, axis=0), mask=channel_inside)


def new_negative(x):
    """Memory for the bits of an (N, C, *spatial) tensor: (N·spatial, bytes), uint8."""
    return torch.empty(bits_shape(x), dtype=torch.uint8, device=x.device)


def add_prelu(x, slope, bias=None, residual=None, out=None, plan=None):
    """PReLU of x + bias + residual, for tensors that `supports` accepts.

    Args:
        x: (N, C, *spatial).
        slope: (C,), the factor for negative values of each channel.
        bias: None or (C,).
        residual: None, (N, C, *spatial) or (N, 1, *spatial).
        out: None, or the tensor that y is written to. It may be `x`, or a channel slice of a wider tensor.
        plan: None, or the `forward_plan` of the arguments.

    Returns:
        y: (N, C, *spatial), with the type of `x`; `out` if it is given.
        negative: with the shape of `new_negative`. Bit i of byte j of a voxel is set where channel 8 j + i is zero,
            negative or NaN before the activation.
    """
    if plan is None:
        plan = forward_plan(x, slope, bias, residual, out)
    y = torch.empty_like(x) if out is None else out
    negative = torch.empty(plan.bits, dtype=torch.uint8, device=x.device)
    with on_device_of(x):
        _add_prelu_forward_kernel[plan.grid](x, slope, bias, residual, y, negative, plan.num_rows, **plan.constants)
    return y, negative


def add_prelu_backward(grads, y, negative, slope):
    """Gradients of `add_prelu`.

    Args:
        grads: one to `MAX_GRADIENTS` gradients of y, which are added: (N, C, *spatial), with the type of `y`; copied if
            they are not rows of C channels.
        y, negative: what `add_prelu` returned; `y` is copied if it is not rows of C channels any more.
        slope: (C,), as in the forward pass.

    Returns:
        grad_x: (N, C, *spatial), dense channels-last, with the type of `y`; also the gradient of a full residual.
        grad_slope, grad_bias: (C,), float32.
    """
    grads, y, plan = _planned(grads, y)
    partials = torch.empty(plan.partials, dtype=torch.float32, device=y.device)
    grad_x = _launch_backward(grads, y, negative, slope, partials, plan)
    return grad_x, *sum_partials(partials, y.shape[1])


def add_prelu_backward_partials(grads, y, negative, slope, partials):
    """`grad_x` of `add_prelu_backward`, and the partial sums from which `sum_all_partials` makes the other gradients.

    Args:
        grads, y, negative, slope: as for `add_prelu_backward`.
        partials: is written; float32, contiguous, with the shape `partials` of the forward plan.
    """
    grads, y, plan = _planned(grads, y)
    return _launch_backward(grads, y, negative, slope, partials, plan)


def _planned(grads, y):
    """Gradients and y as rows, copied where they are not, and the plan of the launch."""
    plan = backward_plan(grads, y)
    if plan is None:
        # a saved y that was moved to the host and back may have lost its layout too
        grads, (y,) = _as_rows(grads), _as_rows([y])
        plan = backward_plan(grads, y)
    return grads, y, plan


def _as_rows(volumes):
    layout = MEMORY_FORMAT[volumes[0].ndim]
    return [volume if has_rows(volume) else volume.contiguous(memory_format=layout) for volume in volumes]


def _launch_backward(grads, y, negative, slope, partials, plan):
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=MEMORY_FORMAT[y.ndim])
    first, second, third = (*grads, None, None)[:MAX_GRADIENTS]
    with on_device_of(y):
        _add_prelu_backward_kernel[plan.grid](
            first, second, third, y, negative, slope, grad_x, partials, plan.num_rows, **plan.constants
        )
    return grad_x
