"""A volume with its shifts along z as channels, which the rewrite `zstack` of a convolution reads.

Formula, for d taps along z and C channels:

    stacked[n, z, y, x, i C + c] = x[n, z + i - d // 2, y, x, c]     0 beyond the volume

Layout: channels-last volumes, as rows (N·D·H·W, C) and (N·D·H·W, d C).

Bytes moved per element of b bytes: d b written and b read, since the d planes that a program's rows need are read by
its neighbours too and stay in the cache. Plain PyTorch pads first, which moves 3 b more, in three launches.

Source:
    benchmarks/results/cudnn says for which convolutions the rewrite is worth it.
"""

import triton
import triton.language as tl

from vnet_fast.kernels.launch import on_device_of

NUM_WARPS = 4
# elements of a tile: two loads of 16 bytes in half precision for each thread
TILE = 2048
MAX_CHANNELS = 1024


@triton.jit
def _stack_kernel(
    x_ptr,
    stacked_ptr,
    num_rows,
    depth,
    plane,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TAPS: tl.constexpr,
):
    # 64-bit offset of the tile, 32-bit offsets within it
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    inside = (row < num_rows - first_row)[:, None] & (channel < CHANNELS)[None, :]
    z = ((first_row + row) // plane) % depth
    offset = row[:, None] * CHANNELS + channel[None, :]
    stacked_offset = row[:, None] * (TAPS * CHANNELS) + channel[None, :]
    for tap in tl.static_range(TAPS):
        shift = tap - TAPS // 2
        there = (z + shift >= 0) & (z + shift < depth)
        # a plane of one voxel is a constant of the compilation, which has no `to`
        source = x_ptr + (first_row + shift * tl.cast(plane, tl.int64)) * CHANNELS
        value = tl.load(source + offset, mask=inside & there[:, None], other=0)
        target = stacked_ptr + first_row * (TAPS * CHANNELS) + tap * CHANNELS
        tl.store(target + stacked_offset, value, mask=inside)


def supports(x, taps):
    """Whether the kernel can handle a volume; if not, the definition runs.

    Args:
        x: (N, C, D, H, W), dense channels-last, at most 1024 channels, not empty; any type.
        taps: along z, an odd number.
    """
    _, channels, d, h, w = x.shape
    strides = (d * h * w * channels, 1, h * w * channels, w * channels, channels)
    axes = zip(x.shape, x.stride(), strides, strict=True)
    dense = all(length == 1 or stride == wanted for length, stride, wanted in axes)
    return dense and x.numel() > 0 and channels <= MAX_CHANNELS and taps % 2 == 1


def stack(x, taps):
    """The shifts of a volume as channels, for a volume that `supports` accepts.

    Args:
        x: (N, C, D, H, W).
        taps: along z.

    Returns:
        (N, taps C, D, H, W), channels-last; the channels of one shift come before those of the next.
    """
    n, channels, d, h, w = x.shape
    stacked = x.new_empty((n, d, h, w, taps * channels))
    padded = triton.next_power_of_2(channels)
    rows = max(1, TILE // padded)
    num_rows = n * d * h * w
    with on_device_of(x):
        _stack_kernel[(triton.cdiv(num_rows, rows),)](
            x, stacked, num_rows, d, h * w, channels, padded, rows, taps, num_warps=NUM_WARPS
        )
    return stacked.permute(0, 4, 1, 2, 3)
