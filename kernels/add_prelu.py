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

Layout: channels-last volumes, as rows (N·D·H·W, C). y and grad_y may be channel slices of a wider tensor: rows of C
channels, with a constant stride from row to row.

Bytes moved per element of b bytes: forward 2 b + 1/8, and b more with a full residual; backward 3 b + 1/8. In plain
PyTorch the three operations move 2 b, 3 b and 2 b, and the backward pass 6 b.

Source:
    He, Zhang, Ren, Sun 2015, arXiv 1502.01852. Deviation: if a slope is too small to compute z from y, y and
    grad_slope use `SMALLEST_SLOPE` with the slope's sign instead; grad_x uses the true slope.
"""

import torch
import triton
import triton.language as tl

# For smaller slopes, slope · z underflows and grad_slope is lost. float32 and bfloat16 have a wide range of exponents:
# z can be computed down to 2⁻⁸⁶, and y differs by less than 1e-12 |z|. The smallest float16 is 2⁻²⁴: with
# eps/4 = 2⁻¹², y differs by at most half the rounding error of a positive z of that size, and z is accurate to eps/8.
SMALLEST_SLOPE = {torch.float32: 2.0**-40, torch.bfloat16: 2.0**-40, torch.float16: 2.0**-12}

# so that a tile has at least 2 rows in float32; V-Net's widest stage has 256 channels
MAX_CHANNELS = 512
NUM_WARPS = 4
# loads of 16 bytes per tensor before the first store, so that each thread has 64 bytes in flight
FORWARD_LOADS = 4
BACKWARD_LOADS = 2
# 5 programs fit on a multiprocessor of 65536 registers; without a limit the compiler spills on sm_100, to fit 6
BACKWARD_REGISTERS = 96
# each program writes a row of partial sums, less than 1 % of the bytes at full resolution; three times what the
# largest GPUs can hold
MAX_BACKWARD_PROGRAMS = 2048
# rows and channels of partial sums that a program adds at a time: 32 numbers for each of 256 threads
PARTIAL_TILE = (1024, 8)
PARTIAL_WARPS = 8

MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


@triton.jit
def _recoverable(slope, SMALLEST: tl.constexpr):
    """The slope that y is computed with, at least SMALLEST away from zero, so that z = y / slope."""
    return tl.where(tl.abs(slope) < SMALLEST, tl.where(slope < 0, -SMALLEST, SMALLEST), slope)


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
    ROWS: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    ONE_CHANNEL_RESIDUAL: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    # 64-bit offset of the tile, 32-bit offsets within it
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    channel_inside = channel < CHANNELS
    row_inside = row < num_rows - first_row
    inside = row_inside[:, None] & channel_inside[None, :]

    offset = row[:, None] * CHANNELS + channel[None, :]
    z = tl.load(x_ptr + first_row * CHANNELS + offset, mask=inside, other=0).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channel, mask=channel_inside, other=0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        if ONE_CHANNEL_RESIDUAL:
            # a vector, because Triton would move all of z through shared memory for a column
            z += tl.load(residual_ptr + first_row + row, mask=row_inside, other=0).to(tl.float32)[:, None]
        else:
            z += tl.load(residual_ptr + first_row * CHANNELS + offset, mask=inside, other=0).to(tl.float32)

    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)
    positive = z > 0
    y = tl.where(positive, z, z * _recoverable(slope, SMALLEST)[None, :])
    y_offset = row[:, None] * Y_STRIDE + channel[None, :]
    tl.store(y_ptr + first_row * Y_STRIDE + y_offset, y.to(y_ptr.dtype.element_ty), mask=inside)

    # not z <= 0, which would drop NaN from grad_slope
    bits = tl.where(positive, 0, 1).reshape(ROWS, PADDED // 8, 8)
    byte = tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2)
    byte_offset = row[:, None] * (PADDED // 8) + tl.arange(0, PADDED // 8)[None, :]
    tl.store(negative_ptr + first_row * (PADDED // 8) + byte_offset, byte.to(tl.uint8), mask=row_inside[:, None])


@triton.jit
def _add_prelu_backward_kernel(
    grad_y_ptr, y_ptr, negative_ptr, slope_ptr, grad_x_ptr, partials_ptr, num_rows, CHANNELS: tl.constexpr,
    PADDED: tl.constexpr, ROWS: tl.constexpr, GRAD_Y_STRIDE: tl.constexpr, Y_STRIDE: tl.constexpr,
    SMALLEST: tl.constexpr, LOADS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    channel_inside = channel < CHANNELS
    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)

    # the rows of a thread are ROWS / LOADS apart, so that their sum over axis 0 stays within the thread
    slope_sums = tl.zeros((ROWS // LOADS, PADDED), tl.float32)
    bias_sums = tl.zeros((ROWS // LOADS, PADDED), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for first_row in range(first, num_rows, tl.num_programs(0) * ROWS):
        row_inside = (row < num_rows - first_row)[:, None]
        inside = row_inside & channel_inside[None, :]
        grad_y_offset = row[:, None] * GRAD_Y_STRIDE + channel[None, :]
        grad_y = tl.load(grad_y_ptr + first_row * GRAD_Y_STRIDE + grad_y_offset, mask=inside, other=0).to(tl.float32)
        y_offset = row[:, None] * Y_STRIDE + channel[None, :]
        y = tl.load(y_ptr + first_row * Y_STRIDE + y_offset, mask=inside, other=0).to(tl.float32)
        byte_offset = row[:, None] * (PADDED // 8) + tl.arange(0, PADDED // 8)[None, :]
        byte = tl.load(negative_ptr + first_row * (PADDED // 8) + byte_offset, mask=row_inside, other=0).to(tl.int32)
        bits = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
        negative = bits.reshape(ROWS, PADDED) != 0

        grad_x = tl.where(negative, grad_y * slope[None, :], grad_y)
        offset = row[:, None] * CHANNELS + channel[None, :]
        tl.store(grad_x_ptr + first_row * CHANNELS + offset, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        grad_slope = tl.where(negative, grad_y * y, 0)
        slope_sums += tl.sum(grad_slope.reshape(LOADS, ROWS // LOADS, PADDED), axis=0)
        bias_sums += tl.sum(grad_x.reshape(LOADS, ROWS // LOADS, PADDED), axis=0)

    grad_slope = tl.div_rn(tl.sum(slope_sums, axis=0), _recoverable(slope, SMALLEST))
    partial = tl.program_id(0) * CHANNELS + channel
    tl.store(partials_ptr + partial, grad_slope, mask=channel_inside)
    partial += tl.num_programs(0) * CHANNELS
    tl.store(partials_ptr + partial, tl.sum(bias_sums, axis=0), mask=channel_inside)


@triton.jit
def _sum_partials_kernel(partials_ptr, grad_slope_ptr, grad_bias_ptr, num_partials, channels, TILE: tl.constexpr):
    channel = tl.program_id(0) * TILE[1] + tl.arange(0, TILE[1])
    inside = channel < channels
    sums = tl.zeros(TILE, tl.float32)
    # (2, partials, channels): slope, then bias
    partials_ptr += tl.program_id(1) * num_partials * channels
    for first in range(0, num_partials, TILE[0]):
        row = first + tl.arange(0, TILE[0])[:, None]
        mask = (row < num_partials) & inside[None, :]
        sums += tl.load(partials_ptr + row * channels + channel[None, :], mask=mask, other=0)
    if tl.program_id(1) == 0:
        tl.store(grad_slope_ptr + channel, tl.sum(sums, axis=0), mask=inside)
    else:
        tl.store(grad_bias_ptr + channel, tl.sum(sums, axis=0), mask=inside)


def supports(x, slope, bias=None, residual=None, out=None):
    """Whether the kernels can handle these tensors; if not, the definition runs.

    Args:
        x: (N, C, D, H, W) or (N, C, H, W), dense channels-last, at most 512 channels, not empty;
            float32, float16 or bfloat16.
        slope, bias: (C,), contiguous, float32 or the type of `x`.
        residual: with the shape, type and layout of `x`; or (N, 1, ...), contiguous, float32 or the type of `x`.
        out: with the shape and type of `x`; dense channels-last, or a channel slice of such a tensor.
    """
    if x.dtype not in SMALLEST_SLOPE or x.ndim not in MEMORY_FORMAT or x.numel() == 0:
        return False
    channels = x.shape[1]
    if channels > MAX_CHANNELS or _row_stride(x) != channels:
        return False
    types = (x.dtype, torch.float32)
    for vector in (slope,) if bias is None else (slope, bias):
        if vector.shape != (channels,) or vector.dtype not in types or not vector.is_contiguous():
            return False
    if residual is not None:
        if residual.shape == (x.shape[0], 1, *x.shape[2:]):
            fits = residual.dtype in types and residual.is_contiguous()
        else:
            fits = residual.shape == x.shape and residual.dtype == x.dtype and _row_stride(residual) == channels
        if not fits:
            return False
    return out is None or (out.shape == x.shape and out.dtype == x.dtype and _row_stride(out) is not None)


def new_negative(x):
    """Memory for the bits of an (N, C, *spatial) tensor: (N·spatial, bytes), uint8."""
    return torch.empty((x.numel() // x.shape[1], _padded_channels(x.shape[1]) // 8), dtype=torch.uint8, device=x.device)


def add_prelu(x, slope, bias=None, residual=None, out=None):
    """PReLU of x + bias + residual, for tensors that `supports` accepts.

    Args:
        x: (N, C, *spatial).
        slope: (C,), the factor for negative values of each channel.
        bias: None or (C,).
        residual: None, (N, C, *spatial) or (N, 1, *spatial).
        out: None, or the tensor that y is written to. It may be `x`, or a channel slice of a wider tensor.

    Returns:
        y: (N, C, *spatial), with the type of `x`; `out` if it is given.
        negative: with the shape of `new_negative`. Bit i of byte j of a voxel is set where channel 8 j + i is zero,
            negative or NaN before the activation.
    """
    y = torch.empty_like(x) if out is None else out
    negative = new_negative(x)
    num_rows = len(negative)
    constants = _tile(x, FORWARD_LOADS) | {"Y_STRIDE": _row_stride(y)}
    constants["ONE_CHANNEL_RESIDUAL"] = residual is not None and residual.shape[1] == 1
    with torch.cuda.device_of(x):
        grid = (triton.cdiv(num_rows, constants["ROWS"]),)
        _add_prelu_forward_kernel[grid](x, slope, bias, residual, y, negative, num_rows, **constants)
    return y, negative


def add_prelu_backward(grad_y, y, negative, slope):
    """Gradients of `add_prelu`.

    Args:
        grad_y: (N, C, *spatial), with the type of `y`; copied if it is not rows of C channels.
        y, negative: what `add_prelu` returned.
        slope: (C,), as in the forward pass.

    Returns:
        grad_x: (N, C, *spatial), dense channels-last, with the type of `y`; also the gradient of a full residual.
        grad_slope, grad_bias: (C,), float32.
    """
    if _row_stride(grad_y) is None:
        grad_y = grad_y.contiguous(memory_format=MEMORY_FORMAT[y.ndim])
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=MEMORY_FORMAT[y.ndim])
    channels, num_rows = y.shape[1], len(negative)
    constants = _tile(y, BACKWARD_LOADS) | {"LOADS": BACKWARD_LOADS}
    constants |= {"GRAD_Y_STRIDE": _row_stride(grad_y), "Y_STRIDE": _row_stride(y)}
    programs = min(triton.cdiv(num_rows, constants["ROWS"]), MAX_BACKWARD_PROGRAMS)
    partials = torch.empty((2, programs, channels), dtype=torch.float32, device=y.device)
    grad_slope, grad_bias = (torch.empty(channels, dtype=torch.float32, device=y.device) for _ in range(2))
    with torch.cuda.device_of(y):
        _add_prelu_backward_kernel[(programs,)](
            grad_y, y, negative, slope, grad_x, partials, num_rows, **constants, maxnreg=BACKWARD_REGISTERS
        )
        _sum_partials_kernel[(triton.cdiv(channels, PARTIAL_TILE[1]), 2)](
            partials, grad_slope, grad_bias, programs, channels, PARTIAL_TILE, num_warps=PARTIAL_WARPS
        )
    return grad_x, grad_slope, grad_bias


def _padded_channels(channels):
    """The next power of two, at least 8, so that a voxel has whole bytes of bits."""
    return max(8, triton.next_power_of_2(channels))


def _tile(x, loads):
    """The compile-time values of both kernels, for tensors with the shape and type of `x`."""
    padded = _padded_channels(x.shape[1])
    return {
        "CHANNELS": x.shape[1],
        "PADDED": padded,
        "ROWS": loads * 16 * 32 * NUM_WARPS // x.element_size() // padded,
        "SMALLEST": SMALLEST_SLOPE[x.dtype],
        "num_warps": NUM_WARPS,
    }


def _row_stride(tensor):
    """The elements from one voxel to the next, or None if the tensor is not rows of adjacent channels."""
    channels = tensor.shape[1]
    # the stride of an axis of length 1 means nothing
    axes = [axis for axis in (*range(tensor.ndim - 1, 1, -1), 0) if tensor.shape[axis] > 1]
    row_stride = expected = tensor.stride(axes[0]) if axes else channels
    for axis in axes:
        if tensor.stride(axis) != expected:
            return None
        expected *= tensor.shape[axis]
    adjacent = channels == 1 or tensor.stride(1) == 1
    return row_stride if adjacent and row_stride >= channels else None
