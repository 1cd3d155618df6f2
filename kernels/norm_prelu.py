"""PReLU of normalised x + residual, and its gradients.

Formula, for each set of elements (see Layout) with n elements, and each channel c, with the residual optional:

    mean = Σ x / n,    variance = Σ (x - mean)² / n,    rstd = 1 / sqrt(variance + eps)
    x̂ = (x - mean) · rstd
    z = weight_c · x̂ + bias_c + residual
    y = z               if z > 0
        slope_c · z     otherwise

Derivative, where z = 0 takes the slope, as in PyTorch:

    grad_z        = grad_y · (1 if z > 0 else slope_c)     also the gradient of the residual
    grad_bias_c   = Σ grad_z
    grad_weight_c = Σ grad_z · x̂
    grad_slope_c  = Σ grad_y · z  over z <= 0
    grad_x        = rstd · (weight_c · grad_z - a - x̂ · b)
    a = Σ weight_c · grad_z / n  and  b = Σ weight_c · grad_z · x̂ / n  over the set

Layout: channels-last volumes, as rows (N·D·H·W, C). A set is all voxels of a group of adjacent channels, of one sample
or of all samples. x, residual and grad_x are dense; y and grad_y may be channel slices of a wider tensor.

Accuracy: each thread takes Welford's mean and sum of squares of x minus the first value of the set. So both are as
accurate as the spread of x allows, whatever its mean. Programs are combined by the formula of Chan et al., in a fixed
order.

Saved for the backward pass: x, mean and variance, from which z is computed again. This needs neither y nor bits of its
sign, because x has to be read anyway; it needs the residual, which the stage's first convolution saves.

Bytes moved per element of b bytes: forward 3 b, and b with a full residual; backward 5 b. With a full residual, whose
gradient is an output of its own, 7 b: the first pass reads grad_y, x and the residual and writes grad_z, from which the
second computes grad_x. A residual of one channel counts little, in either direction.

Source:
    Ioffe and Szegedy 2015, Ulyanov et al. 2016, Wu and He 2018; Welford 1962; Chan, Golub, LeVeque 1983.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.launch import on_device_of
from vnet_fast.kernels.norm_prelu_layouts import NUM_WARPS, as_rows, plan_of, supports
from vnet_fast.kernels.norm_prelu_sums import combine_gradients, combine_statistics, load_shift

__all__ = ["norm_prelu", "norm_prelu_backward", "supports"]


@triton.jit
def _channels(FORM: tl.constexpr):
    """The channels of a program's tile."""
    return tl.program_id(2) * FORM.padded + tl.arange(0, FORM.padded)


@triton.jit
def _load_rows(ptr, first_row, channel, inside, stride: tl.constexpr, FORM: tl.constexpr):
    # 64-bit offset of the tile, 32-bit offsets within it
    offset = tl.arange(0, FORM.rows)[:, None] * stride + channel[None, :]
    return tl.load(ptr + first_row * stride + offset, mask=inside, other=0).to(tl.float32)


@triton.jit
def _store_rows(ptr, first_row, channel, inside, values, stride: tl.constexpr, FORM: tl.constexpr):
    offset = tl.arange(0, FORM.rows)[:, None] * stride + channel[None, :]
    tl.store(ptr + first_row * stride + offset, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _load_vector(ptr, channel, FORM: tl.constexpr):
    return tl.load(ptr + channel, mask=channel < FORM.channels, other=0).to(tl.float32)


@triton.jit
def _load_statistics(mean_ptr, variance_ptr, channel, FORM: tl.constexpr):
    """Mean and 1 / standard deviation of the channels of a sample."""
    sample = 0 if FORM.across_samples else tl.program_id(1)
    index = sample * FORM.groups + channel // FORM.group_channels
    inside = channel < FORM.channels
    mean = tl.load(mean_ptr + index, mask=inside, other=0)
    variance = tl.load(variance_ptr + index, mask=inside, other=1)
    return mean, 1 / tl.sqrt_rn(variance + FORM.eps)


@triton.jit
def _load_residual(ptr, start, inside_rows, channel, inside, FORM: tl.constexpr):
    if FORM.one_channel_residual:
        # a vector, because Triton would move all of z through shared memory for a column
        residual = tl.load(ptr + start + tl.arange(0, FORM.rows), mask=inside_rows, other=0).to(tl.float32)[:, None]
    else:
        residual = _load_rows(ptr, start, channel, inside, FORM.channels, FORM)
    return residual


@triton.jit
def _statistics_kernel(x_ptr, partials_ptr, num_rows, FORM: tl.constexpr):
    """Mean, minus the shift, and sum of squared differences of the voxels that a program reads, for each channel."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    sample, samples = tl.program_id(1), tl.num_programs(1)
    channel = _channels(FORM)
    channel_inside = channel < FORM.channels
    first_of_sample = sample.to(tl.int64) * num_rows
    start = program * FORM.rows
    shift = load_shift(x_ptr, num_rows, sample, channel, channel_inside, FORM)
    # Triton 3.6 takes no attribute for a shape
    ROWS: tl.constexpr = FORM.rows
    PADDED: tl.constexpr = FORM.padded
    mean = tl.zeros((ROWS, PADDED), tl.float32)
    squares = tl.zeros((ROWS, PADDED), tl.float32)
    count = 0.0
    for first_row in range(start, num_rows, programs * FORM.rows):
        inside = (tl.arange(0, FORM.rows) < num_rows - first_row)[:, None] & channel_inside[None, :]
        x = _load_rows(x_ptr, first_of_sample + first_row, channel, inside, FORM.channels, FORM)
        count += 1
        difference = x - shift[None, :] - mean
        # only the last tile has rows that do not exist
        step = tl.where(inside, difference, 0)
        mean += step * (1 / count)
        squares += step * tl.where(inside, x - shift[None, :] - mean, 0)
    # how many values each thread's row has seen
    last_row = start + tl.arange(0, FORM.rows) + (count - 1).to(tl.int32) * (programs * FORM.rows)
    counts = tl.where(last_row < num_rows, count, count - 1)[:, None]
    total = tl.sum(counts, axis=0)
    mean_of_all = tl.sum(counts * mean, axis=0) / total
    difference = mean - mean_of_all[None, :]
    squares_of_all = tl.sum(squares + counts * difference * difference, axis=0)
    # (2, samples, programs, channels)
    partial = (sample * programs + program) * FORM.channels + channel
    tl.store(partials_ptr + partial, mean_of_all, mask=channel_inside)
    partial += samples * programs * FORM.channels
    tl.store(partials_ptr + partial, squares_of_all, mask=channel_inside)


@triton.jit
def _normalise_kernel(
    x_ptr, weight_ptr, bias_ptr, slope_ptr, residual_ptr, mean_ptr, variance_ptr, y_ptr, num_rows,
    FORM: tl.constexpr, Y_STRIDE: tl.constexpr,
):  # fmt: skip
    channel = _channels(FORM)
    first_row = tl.program_id(0) * FORM.rows
    start = tl.program_id(1).to(tl.int64) * num_rows + first_row
    inside_rows = tl.arange(0, FORM.rows) < num_rows - first_row
    inside = inside_rows[:, None] & (channel < FORM.channels)[None, :]
    x = _load_rows(x_ptr, start, channel, inside, FORM.channels, FORM)
    mean, rstd = _load_statistics(mean_ptr, variance_ptr, channel, FORM)
    weight, bias = _load_vector(weight_ptr, channel, FORM), _load_vector(bias_ptr, channel, FORM)
    z = (x - mean[None, :]) * rstd[None, :] * weight[None, :] + bias[None, :]
    if residual_ptr is not None:
        z += _load_residual(residual_ptr, start, inside_rows, channel, inside, FORM)
    slope = _load_vector(slope_ptr, channel, FORM)
    y = tl.where(z > 0, z, z * slope[None, :])
    _store_rows(y_ptr, start, channel, inside, y, Y_STRIDE, FORM)


@triton.jit
def _reduce_gradients_kernel(
    grad_y_ptr, x_ptr, weight_ptr, bias_ptr, slope_ptr, residual_ptr, mean_ptr, variance_ptr, grad_z_ptr,
    partials_ptr, num_rows, FORM: tl.constexpr, GRAD_STRIDE: tl.constexpr,
):  # fmt: skip
    """Σ grad_z, Σ grad_z · x̂ and Σ grad_y · z over z <= 0 of what a program reads; grad_z if it is wanted."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    sample, samples = tl.program_id(1), tl.num_programs(1)
    channel = _channels(FORM)
    channel_inside = channel < FORM.channels
    mean, rstd = _load_statistics(mean_ptr, variance_ptr, channel, FORM)
    weight, bias = _load_vector(weight_ptr, channel, FORM), _load_vector(bias_ptr, channel, FORM)
    slope = _load_vector(slope_ptr, channel, FORM)
    # the rows of a thread are rows / loads apart, so that their sum over axis 0 stays within the thread
    LOADS: tl.constexpr = FORM.loads
    FEWER: tl.constexpr = FORM.rows // FORM.loads
    PADDED: tl.constexpr = FORM.padded
    bias_sums = tl.zeros((FEWER, PADDED), tl.float32)
    weight_sums = tl.zeros((FEWER, PADDED), tl.float32)
    slope_sums = tl.zeros((FEWER, PADDED), tl.float32)
    for first_row in range(program * FORM.rows, num_rows, programs * FORM.rows):
        start = sample.to(tl.int64) * num_rows + first_row
        inside_rows = tl.arange(0, FORM.rows) < num_rows - first_row
        inside = inside_rows[:, None] & channel_inside[None, :]
        grad_y = _load_rows(grad_y_ptr, start, channel, inside, GRAD_STRIDE, FORM)
        x = _load_rows(x_ptr, start, channel, inside, FORM.channels, FORM)
        normalised = (x - mean[None, :]) * rstd[None, :]
        z = normalised * weight[None, :] + bias[None, :]
        if residual_ptr is not None:
            z += _load_residual(residual_ptr, start, inside_rows, channel, inside, FORM)
        grad_z = tl.where(z > 0, grad_y, grad_y * slope[None, :])
        if grad_z_ptr is not None:
            # the sums are of what is stored: where x hardly varies, rstd is large, and what they differ by would be too
            grad_z = grad_z.to(grad_z_ptr.dtype.element_ty).to(tl.float32)
            _store_rows(grad_z_ptr, start, channel, inside, grad_z, FORM.channels, FORM)
        # not z <= 0, which would drop NaN; grad_y is zero where there is no row
        grad_slope = tl.where(z > 0, 0, grad_y * z)
        bias_sums += tl.sum(grad_z.reshape(LOADS, FEWER, PADDED), axis=0)
        weight_sums += tl.sum((grad_z * normalised).reshape(LOADS, FEWER, PADDED), axis=0)
        slope_sums += tl.sum(grad_slope.reshape(LOADS, FEWER, PADDED), axis=0)
    # (3, samples, programs, channels)
    partial = (sample * programs + program) * FORM.channels + channel
    part = samples * programs * FORM.channels
    tl.store(partials_ptr + partial, tl.sum(bias_sums, axis=0), mask=channel_inside)
    tl.store(partials_ptr + partial + part, tl.sum(weight_sums, axis=0), mask=channel_inside)
    tl.store(partials_ptr + partial + 2 * part, tl.sum(slope_sums, axis=0), mask=channel_inside)


@triton.jit
def _gradient_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, slope_ptr, residual_ptr, mean_ptr, variance_ptr, terms_ptr, grad_x_ptr,
    num_rows, FORM: tl.constexpr, GRAD_STRIDE: tl.constexpr, IS_GRAD_Z: tl.constexpr,
):  # fmt: skip
    """grad_x from grad_z if the reduction wrote it, else from grad_y."""
    channel = _channels(FORM)
    channel_inside = channel < FORM.channels
    first_row = tl.program_id(0) * FORM.rows
    start = tl.program_id(1).to(tl.int64) * num_rows + first_row
    inside_rows = tl.arange(0, FORM.rows) < num_rows - first_row
    inside = inside_rows[:, None] & channel_inside[None, :]
    grad = _load_rows(grad_ptr, start, channel, inside, GRAD_STRIDE, FORM)
    x = _load_rows(x_ptr, start, channel, inside, FORM.channels, FORM)
    mean, rstd = _load_statistics(mean_ptr, variance_ptr, channel, FORM)
    weight = _load_vector(weight_ptr, channel, FORM)
    normalised = (x - mean[None, :]) * rstd[None, :]
    if not IS_GRAD_Z:
        z = normalised * weight[None, :] + _load_vector(bias_ptr, channel, FORM)[None, :]
        if residual_ptr is not None:
            z += _load_residual(residual_ptr, start, inside_rows, channel, inside, FORM)
        grad = tl.where(z > 0, grad, grad * _load_vector(slope_ptr, channel, FORM)[None, :])
    # a and b of the formula: (2, samples or 1, groups)
    sample = 0 if FORM.across_samples else tl.program_id(1)
    samples = 1 if FORM.across_samples else tl.num_programs(1)
    index = sample * FORM.groups + channel // FORM.group_channels
    a = tl.load(terms_ptr + index, mask=channel_inside, other=0)
    b = tl.load(terms_ptr + samples * FORM.groups + index, mask=channel_inside, other=0)
    grad_x = rstd[None, :] * (weight[None, :] * grad - a[None, :] - normalised * b[None, :])
    _store_rows(grad_x_ptr, start, channel, inside, grad_x, FORM.channels, FORM)


def norm_prelu(x, weight, bias, slope, residual, sets, out=None):
    """PReLU of normalised x + residual, for tensors that `supports` accepts.

    Args:
        x: (N, C, *spatial).
        weight, bias, slope: (C,).
        residual: None, (N, C, *spatial) or (N, 1, *spatial).
        sets: into how many groups the channels are divided; whether samples share statistics; eps.
        out: None, or the tensor that y is written to, which may be a channel slice of a wider tensor.

    Returns:
        y: (N, C, *spatial), with the type of `x`; `out` if it is given.
        mean, variance: (N or 1, groups), float32.
    """
    plan = plan_of(x, sets, residual, out)
    y = torch.empty_like(x) if out is None else out
    mean, variance = (torch.empty(plan.statistics, dtype=torch.float32, device=x.device) for _ in range(2))
    partials = torch.empty((2, *plan.partials), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _statistics_kernel[plan.reducing](x, partials, plan.num_rows, plan.form, num_warps=NUM_WARPS)
        combine_statistics(x, partials, mean, variance, plan)
        _normalise_kernel[plan.grid](
            x, weight, bias, slope, residual, mean, variance, y, plan.num_rows, plan.form, plan.stride,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return y, mean, variance


def norm_prelu_backward(grad_y, x, weight, bias, slope, residual, mean, variance, sets):
    """Gradients of `norm_prelu`.

    Args:
        grad_y: (N, C, *spatial), with the type of `x`, or a channel slice of a wider tensor; copied if it is not rows
            of C channels.
        x, weight, bias, slope, residual, sets: as in the forward pass.
        mean, variance: what it returned.

    Returns:
        grad_x: (N, C, *spatial), dense channels-last, with the type of `x`.
        grad_residual: likewise, or None without a residual of C channels.
        grad_weight, grad_bias, grad_slope: (C,), float32.
    """
    grad_y = as_rows(grad_y)
    plan = plan_of(x, sets, residual, grad_y)
    partials = torch.empty((3, *plan.partials), dtype=torch.float32, device=x.device)
    has_full_residual = residual is not None and residual.shape[1] == x.shape[1]
    grad_z = torch.empty_like(x) if has_full_residual else None
    grad_x = torch.empty_like(x)
    saved = weight, bias, slope, residual, mean, variance
    with on_device_of(x):
        _reduce_gradients_kernel[plan.reducing](
            grad_y, x, *saved, grad_z, partials, plan.num_rows, plan.form, plan.stride, num_warps=NUM_WARPS
        )
        terms, vectors = combine_gradients(partials, weight, plan)
        grad, stride = (grad_y, plan.stride) if grad_z is None else (grad_z, x.shape[1])
        _gradient_kernel[plan.grid](
            grad, x, *saved, terms, grad_x, plan.num_rows, plan.form, stride, grad_z is not None,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return grad_x, grad_z, *vectors
