"""Sums of the partial sums that the backward kernels write, for one layer or for all layers in one launch.

Formula: a backward kernel leaves (2, P, C) numbers, a row for each of its P programs; the results are Σ over P.

Bytes moved: 8 P C, and the results. For all layers of V-Net these are 19 MB (batch 2 of 128x128x64 in half precision).
With a launch for each layer, most of the time goes into the 29 launches.

The sums are ordered: a layer's result has the same bits, whether it is summed alone or with the others.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.launch import is_capturing, on_device_of

# rows and channels of partial sums that a program adds at a time: 32 numbers for each of 256 threads
PARTIAL_TILE = (1024, 8)
PARTIAL_WARPS = 8


@triton.jit
def _column_sums(partials_ptr, num_partials, width, TILE: tl.constexpr):
    sums = tl.zeros(TILE, tl.float32)
    for first in range(0, num_partials, TILE[0]):
        row = first + tl.arange(0, TILE[0])[:, None]
        offset = row * width + tl.arange(0, TILE[1])[None, :]
        sums += tl.load(partials_ptr + offset, mask=row < num_partials, other=0)
    return tl.sum(sums, axis=0)


@triton.jit
def _sum_partials_kernel(partials_ptr, slope_ptr, bias_ptr, num_partials, tiles, channels, TILE: tl.constexpr):
    # Triton takes no hint about an argument: what it shall know of the width, it must compute
    width = tiles * TILE[1]
    first = tl.program_id(0) * TILE[1]
    # (2, partials, width): slope, then bias
    partials_ptr += tl.program_id(1) * num_partials * width + first
    sums = _column_sums(partials_ptr, num_partials, width, TILE)
    channel = first + tl.arange(0, TILE[1])
    if tl.program_id(1) == 0:
        tl.store(slope_ptr + channel, sums, mask=channel < channels)
    else:
        tl.store(bias_ptr + channel, sums, mask=channel < channels)


@triton.jit
def _sum_all_partials_kernel(partials_ptr, table_ptr, sums_ptr, TILE: tl.constexpr):
    table_ptr += tl.program_id(0) * 3
    first = tl.multiple_of(tl.load(table_ptr), 8)
    num_partials = tl.load(table_ptr + 1).to(tl.int32)
    width = tl.multiple_of(tl.load(table_ptr + 2).to(tl.int32), 8)
    sums = _column_sums(partials_ptr + first, num_partials, width, TILE)
    tl.store(sums_ptr + tl.program_id(0) * TILE[1] + tl.arange(0, TILE[1]), sums)


def sum_partials(partials, channels):
    """The sums of one layer.

    Args:
        partials: (2, P, width), float32, contiguous; `width` is a multiple of 8, at least `channels`.
        channels: C.

    Returns:
        the two sums over P, (C,), float32.
    """
    slope, bias = (torch.empty(channels, dtype=torch.float32, device=partials.device) for _ in range(2))
    _, num_partials, width = partials.shape
    tiles = width // PARTIAL_TILE[1]
    with on_device_of(partials):
        _sum_partials_kernel[(tiles, 2)](
            partials, slope, bias, num_partials, tiles, channels, PARTIAL_TILE, num_warps=PARTIAL_WARPS
        )
    return slope, bias


def sum_all_partials(memory, layers):
    """The sums of several layers, in one launch.

    While a CUDA graph is captured, nothing may be copied to the device. Then layers that have not been summed together
    before take a launch each.

    Args:
        memory: (n,), float32, with the partial sums of all layers.
        layers: for each layer (first, P, width, C): its (2, P, width) partial sums begin at memory[first]; `first` and
            `width` are multiples of 8.

    Returns:
        for each layer its two sums over P, (C,), float32.
    """
    if (layers, memory.device) not in _tables and is_capturing(memory):
        return [
            sum_partials(memory[first : first + 2 * count * width].view(2, count, width), channels)
            for first, count, width, channels in layers
        ]
    table = _table(layers, memory.device)
    sums = torch.empty(len(table) * PARTIAL_TILE[1], dtype=torch.float32, device=memory.device)
    with on_device_of(memory):
        _sum_all_partials_kernel[(len(table),)](memory, table, sums, PARTIAL_TILE, num_warps=PARTIAL_WARPS)
    pieces = iter(sums.split([width for _, _, width, _ in layers for _ in range(2)]))
    return [(next(pieces)[:channels], next(pieces)[:channels]) for *_, channels in layers]


# The rows that programs of `_sum_all_partials_kernel` read, by layers and device. They are kept for good, because a
# CUDA graph reads them at every replay.
_tables = {}


def _table(layers, device):
    """(programs, 3), int64: where the 8 columns of a program begin, the number of their rows, and the row's width."""
    if (layers, device) not in _tables:
        rows = [
            (first + part * count * width + column, count, width)
            for first, count, width, _ in layers
            for part in range(2)
            for column in range(0, width, PARTIAL_TILE[1])
        ]
        _tables[layers, device] = torch.tensor(rows, device=device)
    return _tables[layers, device]
