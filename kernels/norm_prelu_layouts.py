"""Which tensors the kernels of `norm_prelu` take, and how each launch is cut into tiles."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

from vnet_fast.kernels.add_prelu_layouts import MEMORY_FORMAT, has_rows, layout_of, row_stride
from vnet_fast.kernels.add_prelu_layouts import supports as supports_add_prelu

NUM_WARPS = 4
# of 16 bytes per tensor and thread, before anything is computed
LOADS = 2
# so that a tile has at least 2 rows in float32; wider rows are cut into several tiles
WIDEST_TILE = 512
# a program for each tile of up to so many rows of partial sums: less than 1 % of the bytes at full resolution, and
# three times what the largest GPUs can hold
MAX_PROGRAMS = 2048
# of channels that share statistics: a row of partial sums of a group is read at once
MAX_GROUP = 512
# rows of a sample are counted in 32 bits
MAX_ROWS = 2**31 - 2**21
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Form:
    """The compile-time values of the kernels."""

    channels: int
    # channels of a tile, a power of two
    padded: int
    rows: int
    loads: int
    groups: int
    group_channels: int
    across_samples: bool
    eps: float
    one_channel_residual: bool


class Plan(NamedTuple):
    """The launches for tensors of one layout."""

    # of the passes that write a volume, and of those that reduce it: programs, samples, tiles of channels
    grid: tuple[int, int, int]
    reducing: tuple[int, int, int]
    # of a sample
    num_rows: int
    form: Form
    # of each partial sum: samples, programs, channels
    partials: tuple[int, int, int]
    # of mean and variance: samples or 1, groups
    statistics: tuple[int, int]
    # elements from a row of y or of its gradient to the next
    stride: int


def supports(x, weight, bias, slope, residual, sets, out=None):
    """Whether the kernels can handle these tensors; if not, the definition runs.

    Args:
        x: (N, C, D, H, W) or (N, C, H, W), dense channels-last, not empty; float32, float16 or bfloat16.
        weight, bias, slope: (C,), contiguous, float32 or the type of `x`.
        residual: with the shape, type and layout of `x`; or (N, 1, ...), contiguous, float32 or the type of `x`.
        sets: groups of channels, a divisor of C; whether samples share statistics; eps.
        out: with the shape and type of `x`; dense channels-last, or a channel slice of such a tensor.
    """
    if not (supports_add_prelu(x, slope, bias, residual, out) and supports_add_prelu(x, weight)):
        return False
    samples, channels = x.shape[:2]
    groups = sets[0]
    is_group = groups > 0 and channels % groups == 0 and channels // groups <= MAX_GROUP
    # a grid has at most 65535 samples
    return is_group and samples < 2**16 and x.numel() // (samples * channels) < MAX_ROWS


def plan_of(x, sets, residual, y):
    """The launches for tensors that `supports` accepts; None if `y` is not rows of adjacent channels.

    Args:
        x, sets, residual: as in the forward pass.
        y: None, or what is written, or its gradient.
    """
    if y is not None and not has_rows(y):
        return None
    one_channel = residual is not None and residual.shape[1] != x.shape[1]
    return _plan_of(layout_of(x), tuple(sets), one_channel, layout_of(y))


@functools.lru_cache(maxsize=1024)
def _plan_of(x, sets, one_channel_residual, y):
    (samples, channels, *spatial), _, dtype = x
    groups, across_samples, eps = sets
    num_rows = math.prod(spatial)
    padded = min(max(8, triton.next_power_of_2(channels)), WIDEST_TILE)
    rows = LOADS * 16 * 32 * NUM_WARPS // dtype.itemsize // padded
    if channels < padded == 8:
        # numbers that are loaded one by one need more registers for their addresses, and would spill
        rows //= 2
    own = groups, channels // groups, across_samples, eps
    form = Form(channels, padded, rows, LOADS, *own, one_channel_residual)
    tiles, blocks = triton.cdiv(channels, padded), triton.cdiv(num_rows, rows)
    programs = min(blocks, max(1, MAX_PROGRAMS // samples))
    stride = channels if y is None else row_stride(*y[:2])
    grids = (blocks, samples, tiles), (programs, samples, tiles)
    return Plan(
        *grids, num_rows, form, (samples, programs, channels), (1 if across_samples else samples, groups), stride
    )


def as_rows(volume):
    """The volume as rows of adjacent channels, copied if it is not."""
    return volume if has_rows(volume) else volume.contiguous(memory_format=MEMORY_FORMAT[volume.ndim])
