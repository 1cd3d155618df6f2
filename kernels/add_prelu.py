"""PReLU of x + bias + residual, and its gradients.

Formula, for each channel c, with the bias and the residual optional:

    z = x + bias_c + residual
    y = z               if z > 0
        slope_c · z     otherwise

Derivative, with z = 0 on the slope's side as PyTorch has it:

    grad_x      = grad_y · (1 if z > 0 else slope_c)     also the gradient of a full residual
    grad_bias_c  = Σ grad_x
    grad_slope_c = Σ grad_y · z  over z <= 0

Kept for the backward pass: y, which the next convolution keeps anyway, and `negative`, a bit for
each element that says where z <= 0. x is free at once, and may be overwritten by y; plain PyTorch
keeps z and y. The sign of y alone would not do, since a slope may become negative. Where the bit is
set, z is y / slope_c, and the division is taken out of the sum: grad_slope_c = Σ grad_y · y / slope_c.

Layout: channels-last volumes, read as rows (N·D·H·W, C). y, and in the backward pass grad_y, may be
a channel slice of a wider tensor: rows of C channels, a constant stride from row to row.

Bytes for each element of b bytes: forward 2 b + 1/8, and b more with a full residual; backward
3 b + 1/8. Plain PyTorch: 2 b for the bias, 3 b for the residual, 2 b for the PReLU; backward 5 b, and
b for the bias.

Source:
    He, Zhang, Ren, Sun 2015, arXiv 1502.01852, equations 1 to 3. Deviation: a slope too small to
    find z again from y counts as `SMALLEST_SLOPE` with its sign, in y and in grad_slope; grad_x has
    the true slope.
"""

import torch
import triton
import triton.language as tl

# Below it slope · z underflows and grad_slope is lost. float32 and bfloat16 have exponents to spare: z
# is found down to 2⁻⁸⁶, and y differs from slope · z by less than 1e-12 |z|. float16 ends at 2⁻²⁴; with
# eps/4 (eps = 2⁻¹⁰) y differs by at most eps/4 |z|, half the rounding error of a positive z of that
# size, and z is found to within 2⁻²⁵ / (eps/4) = eps/8.
SMALLEST_SLOPE = {torch.float32: 2.0**-40, torch.bfloat16: 2.0**-40, torch.float16: 2.0**-12}

# a tile of 4 rows at the least, for the rows of a thread in float32; V-Net's widest stage has 256
MAX_CHANNELS = 512
NUM_WARPS = 4
# of each tensor, before the first store: 32 half-precision elements a thread, or 16 of float32
LOADS_PER_THREAD = 4
BYTES_PER_LOAD = 16
# 4 programs of 128 threads on a multiprocessor of 65536 registers; without the limit sm_100 has 3
MAX_BACKWARD_REGISTERS = 128
# each has a row of partial sums, below 1 % of the bytes at full resolution; 128 multiprocessors filled twice
MAX_BACKWARD_PROGRAMS = 1024

MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}


@triton.jit
def _recoverable(slope, SMALLEST: tl.constexpr):
    """The slope that y is made with: at least SMALLEST away from zero, so that z = y / slope."""
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
    row_inside = (row < num_rows - first_row)[:, None]
    inside = row_inside & channel_inside[None, :]

    offset = row[:, None] * CHANNELS + channel[None, :]
    z = tl.load(x_ptr + first_row * CHANNELS + offset, mask=inside, other=0).to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channel, mask=channel_inside, other=0).to(tl.float32)[None, :]
    if residual_ptr is not None:
        if ONE_CHANNEL_RESIDUAL:
            z += tl.load(residual_ptr + first_row + row[:, None], mask=row_inside, other=0).to(tl.float32)
        else:
            z += tl.load(residual_ptr + first_row * CHANNELS + offset, mask=inside, other=0).to(tl.float32)

    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)
    positive = z > 0
    y = tl.where(positive, z, z * _recoverable(slope, SMALLEST)[None, :])
    y_offset = row[:, None] * Y_STRIDE + channel[None, :]
    tl.store(y_ptr + first_row * Y_STRIDE + y_offset, y.to(y_ptr.dtype.element_ty), mask=inside)

    # rather than z <= 0, which would leave NaN out of grad_slope
    bits = tl.where(positive, 0, 1).reshape(ROWS, PADDED // 8, 8)
    byte = tl.sum(bits << tl.arange(0, 8)[None, None, :], axis=2)
    byte_offset = row[:, None] * (PADDED // 8) + tl.arange(0, PADDED // 8)[None, :]
    tl.store(negative_ptr + first_row * (PADDED // 8) + byte_offset, byte.to(tl.uint8), mask=row_inside)


@triton.jit
def _add_prelu_backward_kernel(
    grad_y_ptr,
    y_ptr,
    negative_ptr,
    slope_ptr,
    grad_x_ptr,
    grad_slope_ptr,
    grad_bias_ptr,
    num_rows,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    GRAD_Y_STRIDE: tl.constexpr,
    Y_STRIDE: tl.constexpr,
    SMALLEST: tl.constexpr,
    LOADS: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    channel_inside = channel < CHANNELS
    slope = tl.load(slope_ptr + channel, mask=channel_inside, other=1).to(tl.float32)

    # the rows that a thread holds are ROWS / LOADS apart: their sum over axis 0 stays within the thread
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

    grad_slope = tl.sum(slope_sums, axis=0) / _recoverable(slope, SMALLEST)
    partial = tl.program_id(0) * CHANNELS + channel
    tl.store(grad_slope_ptr + partial, grad_slope, mask=channel_inside)
    tl.store(grad_bias_ptr + partial, tl.sum(bias_sums, axis=0), mask=channel_inside)


def supports(x, slope, bias=None, residual=None, out=None):
    """Whether the kernels take these tensors; if not, the caller uses the definition.

    Args:
        x: (N, C, D, H, W) or (N, C, H, W), dense channels-last, at most 512 channels, not empty;
            float32, float16 or bfloat16.
        slope, bias: (C,), contiguous, float32 or the type of `x`.
        residual: as `x`, of its type; or (N, 1, ...), contiguous, float32 or the type of `x`.
        out: the shape and type of `x`; dense channels-last or a channel slice of such a tensor.
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
    padded, _ = _tile(x.shape[1], x.element_size())
    return torch.empty((x.numel() // x.shape[1], padded // 8), dtype=torch.uint8, device=x.device)


def add_prelu(x, slope, bias=None, residual=None, out=None):
    """PReLU of x + bias + residual, of tensors that `supports` accepts.

    Args:
        x: (N, C, *spatial).
        slope: (C,), the factor for negative values of each channel.
        bias: None or (C,).
        residual: None, (N, C, *spatial) or (N, 1, *spatial).
        out: None, or where y goes; it may be `x`, and a channel slice of a wider tensor.

    Returns:
        y: (N, C, *spatial), the type of `x`; `out` if given.
        negative: as from `new_negative`; bit i of byte j of a voxel is set where channel 8 j + i is
            zero, negative or NaN before the activation.
    """
    channels = x.shape[1]
    padded, rows = _tile(channels, x.element_size())
    y = torch.empty_like(x) if out is None else out
    negative = new_negative(x)
    num_rows = negative.shape[0]
    with torch.cuda.device_of(x):
        _add_prelu_forward_kernel[(triton.cdiv(num_rows, rows),)](
            x,
            slope,
            bias,
            residual,
            y,
            negative,
            num_rows,
            CHANNELS=channels,
            PADDED=padded,
            ROWS=rows,
            Y_STRIDE=_row_stride(y),
            ONE_CHANNEL_RESIDUAL=residual is not None and residual.shape[1] == 1,
            SMALLEST=SMALLEST_SLOPE[x.dtype],
            num_warps=NUM_WARPS,
        )
    return y, negative


def add_prelu_backward(grad_y, y, negative, slope):
    """Gradients of `add_prelu`.

    Args:
        grad_y: (N, C, *spatial), the type of `y`; copied if it is not rows of C channels (expanded).
        y, negative: what `add_prelu` returned.
        slope: (C,), as it was then.

    Returns:
        grad_x: (N, C, *spatial), dense channels-last, the type of `y`; also the full residual's.
        grad_slope, grad_bias: (C,), float32.
    """
    channels = y.shape[1]
    num_rows = negative.shape[0]
    padded, rows = _tile(channels, y.element_size())
    memory_format = MEMORY_FORMAT[y.ndim]
    if _row_stride(grad_y) is None:
        grad_y = grad_y.contiguous(memory_format=memory_format)
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=memory_format)
    programs = min(triton.cdiv(num_rows, rows), MAX_BACKWARD_PROGRAMS)
    partials = torch.empty((2, programs, channels), dtype=torch.float32, device=y.device)
    with torch.cuda.device_of(y):
        _add_prelu_backward_kernel[(programs,)](
            grad_y,
            y,
            negative,
            slope,
            grad_x,
            partials[0],
            partials[1],
            num_rows,
            CHANNELS=channels,
            PADDED=padded,
            ROWS=rows,
            GRAD_Y_STRIDE=_row_stride(grad_y),
            Y_STRIDE=_row_stride(y),
            SMALLEST=SMALLEST_SLOPE[y.dtype],
            LOADS=LOADS_PER_THREAD,
            num_warps=NUM_WARPS,
            maxnreg=MAX_BACKWARD_REGISTERS,
        )
    return grad_x, partials[0].sum(0), partials[1].sum(0)


def _tile(channels, element_size):
    """Channels, padded to a power of two and whole bytes of bits, and rows of a program's tile."""
    padded = max(8, triton.next_power_of_2(channels))
    threads = 32 * NUM_WARPS
    return padded, threads * LOADS_PER_THREAD * BYTES_PER_LOAD // element_size // padded


def _row_stride(tensor):
    """Elements from a voxel to the next, or None if the tensor is not rows of adjacent channels."""
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
