"""The second sums of `norm_prelu`: what its programs have reduced becomes statistics, and gradients of weights.

Each program leaves a row of partial sums, by channel. The rows of a sample follow one another, and then those of the
next sample; so a set is a run of rows, whether it is of one sample or of all. They are added in a fixed order.

Bytes moved: 16 P C forward, because the statistics take two passes over the partial sums, and 12 P C backward, for P
programs: less than 1 % of a volume's at full resolution.
"""

import torch
import triton
import triton.language as tl

# numbers of partial sums that a program reads at a time: 16 for each of 256 threads
NUMBERS = 4096
NUM_WARPS = 8
# two programs fit on a multiprocessor; without a limit the compiler spills on some devices, to fit more
REGISTERS = 128
# where every channel is a set of its own, a program has as many: 32 bytes
CHANNELS = 8


@triton.jit
def _channels(FORM: tl.constexpr, WIDTH: tl.constexpr):
    """The channels of a program, a group of them if there are groups, and which of them exist."""
    index = tl.arange(0, WIDTH)
    if FORM.group_channels > 1:
        return tl.program_id(0) * FORM.group_channels + index, index < FORM.group_channels
    channel = tl.program_id(0) * WIDTH + index
    return channel, channel < FORM.channels


@triton.jit
def load_shift(x_ptr, num_rows, sample, channel, channel_inside, FORM: tl.constexpr):
    """The first value of each channel's set, from which the others differ little beside their mean."""
    first_row = tl.cast(0 if FORM.across_samples else sample, tl.int64) * num_rows
    first_channel = channel // FORM.group_channels * FORM.group_channels
    return tl.load(x_ptr + first_row * FORM.channels + first_channel, mask=channel_inside, other=0).to(tl.float32)


@triton.jit
def _load(partials_ptr, first, end, row, channel, channel_inside, FORM: tl.constexpr):
    inside = (row < end)[:, None] & channel_inside[None, :]
    offset = row[:, None] * FORM.channels + channel[None, :]
    return tl.load(partials_ptr + offset, mask=inside, other=0)


@triton.jit
def _voxels(row, end, programs, num_rows, FORM: tl.constexpr):
    """How many voxels each program has reduced."""
    program = row % programs
    whole = num_rows // FORM.rows
    voxels = (whole - program + programs - 1) // programs * FORM.rows
    voxels += tl.where(whole % programs == program, num_rows % FORM.rows, 0)
    return tl.where(row < end, voxels, 0).to(tl.float32)[:, None]


@triton.jit
def _combine_statistics_kernel(
    x_ptr, partials_ptr, mean_ptr, variance_ptr, num_rows, programs, all_rows, rows_of_set,
    FORM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    channel, channel_inside = _channels(FORM, WIDTH)
    first = tl.program_id(1) * rows_of_set
    end = first + rows_of_set
    voxels_of_set = tl.cast(rows_of_set // programs, tl.float32) * tl.cast(num_rows, tl.float32)
    # what the partial sums are relative to, the same for all of them
    shift = load_shift(x_ptr, num_rows, tl.program_id(1), channel, channel_inside, FORM)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mean = _load(partials_ptr, first, end, row, channel, channel_inside, FORM)
        sums += _voxels(row, end, programs, num_rows, FORM) * mean
    mean_of_set = tl.sum(sums, axis=0) / voxels_of_set
    if FORM.group_channels > 1:
        mean_of_set = tl.sum(tl.where(channel_inside, mean_of_set, 0), axis=0) / FORM.group_channels
        # all channels of a group have one shift
        shift_of_set = tl.max(tl.where(channel_inside, shift, float("-inf")), axis=0)
        tl.store(mean_ptr + tl.program_id(1) * FORM.groups + tl.program_id(0), mean_of_set + shift_of_set)
        mean_of_set = tl.where(channel_inside, mean_of_set, 0)
    squares = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mean = _load(partials_ptr, first, end, row, channel, channel_inside, FORM)
        difference = mean - mean_of_set[None, :]
        squares += _voxels(row, end, programs, num_rows, FORM) * difference * difference
        squares += _load(partials_ptr + all_rows * FORM.channels, first, end, row, channel, channel_inside, FORM)
    variance = tl.sum(squares, axis=0) / voxels_of_set
    if FORM.group_channels > 1:
        variance = tl.sum(tl.where(channel_inside, variance, 0), axis=0) / FORM.group_channels
        tl.store(variance_ptr + tl.program_id(1) * FORM.groups + tl.program_id(0), variance)
    else:
        index = tl.program_id(1) * FORM.channels + channel
        tl.store(mean_ptr + index, mean_of_set + shift, mask=channel_inside)
        tl.store(variance_ptr + index, variance, mask=channel_inside)


@triton.jit
def _column_sums(partials_ptr, first, end, channel, channel_inside, FORM: tl.constexpr, WIDTH: tl.constexpr,
                 ROWS: tl.constexpr):  # fmt: skip
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        sums += _load(partials_ptr, first, end, row, channel, channel_inside, FORM)
    return tl.sum(sums, axis=0)


@triton.jit
def _store_term(terms_ptr, sample, channel, channel_inside, weight, sums, voxels, FORM: tl.constexpr):
    """Σ weight · sums / n of each set."""
    terms = weight * sums / voxels
    if FORM.group_channels > 1:
        terms = tl.sum(tl.where(channel_inside, terms, 0), axis=0) / FORM.group_channels
        tl.store(terms_ptr + sample * FORM.groups + tl.program_id(0), terms)
    else:
        tl.store(terms_ptr + sample * FORM.channels + channel, terms, mask=channel_inside)


@triton.jit
def _combine_gradients_kernel(
    partials_ptr, weight_ptr, terms_ptr, grad_weight_ptr, grad_bias_ptr, grad_slope_ptr, num_rows, samples, programs,
    FORM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    channel, channel_inside = _channels(FORM, WIDTH)
    weight = tl.load(weight_ptr + channel, mask=channel_inside, other=0).to(tl.float32)
    part = samples * programs * FORM.channels
    grad_weight = tl.zeros((WIDTH,), tl.float32)
    grad_bias = tl.zeros((WIDTH,), tl.float32)
    grad_slope = tl.zeros((WIDTH,), tl.float32)
    for sample in range(0, samples):
        first = sample * programs
        end = first + programs
        of_bias = _column_sums(partials_ptr, first, end, channel, channel_inside, FORM, WIDTH, ROWS)
        of_weight = _column_sums(partials_ptr + part, first, end, channel, channel_inside, FORM, WIDTH, ROWS)
        grad_slope += _column_sums(partials_ptr + 2 * part, first, end, channel, channel_inside, FORM, WIDTH, ROWS)
        grad_bias += of_bias
        grad_weight += of_weight
        if not FORM.across_samples:
            voxels = tl.cast(num_rows, tl.float32)
            _store_term(terms_ptr, sample, channel, channel_inside, weight, of_bias, voxels, FORM)
            of_sample = terms_ptr + samples * FORM.groups
            _store_term(of_sample, sample, channel, channel_inside, weight, of_weight, voxels, FORM)
    if FORM.across_samples:
        voxels = tl.cast(num_rows, tl.float32) * samples
        _store_term(terms_ptr, 0, channel, channel_inside, weight, grad_bias, voxels, FORM)
        _store_term(terms_ptr + FORM.groups, 0, channel, channel_inside, weight, grad_weight, voxels, FORM)
    tl.store(grad_weight_ptr + channel, grad_weight, mask=channel_inside)
    tl.store(grad_bias_ptr + channel, grad_bias, mask=channel_inside)
    tl.store(grad_slope_ptr + channel, grad_slope, mask=channel_inside)


def _launch(plan):
    """How many programs there are along the channels, and the compile-time values."""
    form = plan.form
    if form.group_channels > 1:
        width = triton.next_power_of_2(form.group_channels)
        programs = form.groups
    else:
        width = CHANNELS
        programs = triton.cdiv(form.channels, CHANNELS)
    # Triton's backend for AMD does not know the option and raises a KeyError
    limit = {} if torch.version.hip else {"maxnreg": REGISTERS}
    return programs, {"FORM": form, "WIDTH": width, "ROWS": NUMBERS // width, "num_warps": NUM_WARPS, **limit}


def combine_statistics(x, partials, mean, variance, plan):
    """Writes mean and variance of each set.

    Args:
        x: the volume.
        partials: (2, samples, programs, channels), float32: means, relative to the first value of each set, and sums of
            squared differences from them.
        mean, variance: (samples or 1, groups), float32.
        plan: of the launches that wrote `partials`.
    """
    samples, programs, _ = plan.partials
    width, constants = _launch(plan)
    rows = samples * programs
    _combine_statistics_kernel[(width, len(mean))](
        x, partials, mean, variance, plan.num_rows, programs, rows, rows // len(mean), **constants
    )


def combine_gradients(partials, weight, plan):
    """The gradients of the weights, and what the dependence of the statistics on x subtracts.

    Args:
        partials: (3, samples, programs, channels), float32: sums for bias, weight and slope.
        weight: (C,).
        plan: of the launches that wrote `partials`.

    Returns:
        (2, samples or 1, groups), float32, a and b of the formula; and the gradients of weight, bias and slope, (C,).
    """
    samples, programs, channels = plan.partials
    sets = 1 if plan.form.across_samples else samples
    terms = torch.empty((2, sets, plan.form.groups), dtype=torch.float32, device=partials.device)
    vectors = [torch.empty(channels, dtype=torch.float32, device=partials.device) for _ in range(3)]
    width, constants = _launch(plan)
    _combine_gradients_kernel[(width,)](
        partials, weight, terms, *vectors, plan.num_rows, samples, programs, **constants
    )
    return terms, vectors
