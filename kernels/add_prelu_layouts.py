"""Which tensors the kernels of `add_prelu` take, and how each launch is cut into tiles.

A launch depends on shapes, strides and types alone, so it is planned once for each combination of them and looked up
from then on.
"""

import functools
from typing import NamedTuple

import torch
import triton

# For smaller slopes, slope · z underflows and grad_slope is lost. float32 and bfloat16 have a wide range of exponents:
# z can be computed down to 2⁻⁸⁶, and y differs by less than 1e-12 |z|. The smallest float16 is 2⁻²⁴: with
# eps/4 = 2⁻¹², y differs by at most half the rounding error of a positive z of that size, and z is accurate to eps/8.
SMALLEST_SLOPE = {torch.float32: 2.0**-40, torch.bfloat16: 2.0**-40, torch.float16: 2.0**-12}
MEMORY_FORMAT = {4: torch.channels_last, 5: torch.channels_last_3d}

NUM_WARPS = 4
# loads of 16 bytes per tensor before the first store, so that each thread has 64 bytes in flight
FORWARD_LOADS = 4
BACKWARD_LOADS = 2
# so that a tile has at least 2 rows in float32; wider rows are cut into several tiles
WIDEST_TILE = 512
# a narrower tile would move pieces of rows that are too short
NARROWEST_CUT = 128
# 5 programs fit on a multiprocessor of 65536 registers; without a limit the compiler spills on sm_100, to fit 6
BACKWARD_REGISTERS = 96
# with 96 it spills for three gradients, and where channels have to be masked; so 4 programs fit
WIDE_BACKWARD_REGISTERS = 128
# each program writes a row of partial sums, less than 1 % of the bytes at full resolution; three times what the
# largest GPUs can hold
MAX_BACKWARD_PROGRAMS = 2048
# rows of partial sums are a multiple of this, 32 bytes, so that no read of them is cut
PARTIAL_CHANNELS = 8


class Plan(NamedTuple):
    """A launch of the forward or the backward kernel."""

    grid: tuple[int, int]
    num_rows: int
    # the compile-time values and options
    constants: dict
    # the shapes of the bits, and of the partial sums: slope and bias, programs of the backward kernel, channels
    bits: tuple[int, int]
    partials: tuple[int, int, int]


def layout_of(tensor):
    """What a launch depends on: (shape, strides, type), or None for None."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


def supports(x, slope, bias=None, residual=None, out=None):
    """Whether the kernels can handle these tensors; if not, the definition runs.

    Args:
        x: (N, C, D, H, W) or (N, C, H, W), dense channels-last, not empty; float32, float16 or bfloat16.
        slope, bias: (C,), contiguous, float32 or the type of `x`.
        residual: with the shape, type and layout of `x`; or (N, 1, ...), contiguous, float32 or the type of `x`.
        out: with the shape and type of `x`; dense channels-last, or a channel slice of such a tensor.
    """
    return _supports(*(layout_of(tensor) for tensor in (x, slope, bias, residual, out)))


def forward_plan(x, slope, bias=None, residual=None, out=None):
    """The launch of the forward kernel, or None for tensors that `supports` refuses."""
    return _forward_plan(layout_of(x), layout_of(slope), layout_of(bias), layout_of(residual), layout_of(out))


def backward_plan(grads, y):
    """The launch of the backward kernel, or None if one of the tensors does not have rows.

    Args:
        grads: up to three gradients of y.
        y: what the forward kernel returned.
    """
    return _backward_plan(tuple([layout_of(grad) for grad in grads]), layout_of(y))


def has_rows(tensor):
    """Whether a tensor is rows of adjacent channels, with a constant stride from row to row."""
    return row_stride(tensor.shape, tensor.stride()) is not None


def bits_shape(x):
    """The shape of the bits of an (N, C, *spatial) tensor: (N·spatial, bytes)."""
    padded, tiles = _tiles(x.shape[1])
    return x.numel() // x.shape[1], tiles * padded // 8


def _supports(x, slope, bias, residual, out):
    shape, stride, dtype = x
    if dtype not in SMALLEST_SLOPE or len(shape) not in MEMORY_FORMAT or 0 in shape:
        return False
    channels, types = shape[1], (dtype, torch.float32)
    if row_stride(shape, stride) != channels:
        return False
    for vector in (slope,) if bias is None else (slope, bias):
        if vector[0] != (channels,) or vector[2] not in types or not _is_contiguous(*vector[:2]):
            return False
    if residual is not None:
        residual_shape, residual_stride, residual_type = residual
        if residual_shape == (shape[0], 1, *shape[2:]):
            fits = residual_type in types and _is_contiguous(residual_shape, residual_stride)
        else:
            is_alike = residual_shape == shape and residual_type == dtype
            fits = is_alike and row_stride(residual_shape, residual_stride) == channels
        if not fits:
            return False
    return out is None or (out[0] == shape and out[2] == dtype and row_stride(*out[:2]) is not None)


@functools.lru_cache(maxsize=1024)
def _forward_plan(x, slope, bias, residual, out):
    if not _supports(x, slope, bias, residual, out):
        return None
    shape, _, dtype = x
    constants = tile(shape[1], dtype, FORWARD_LOADS)
    constants["Y_STRIDE"] = shape[1] if out is None else row_stride(*out[:2])
    constants["ONE_CHANNEL_RESIDUAL"] = residual is not None and residual[0][1] == 1
    return _plan(shape, constants, _backward_tile(shape[1], dtype))


@functools.lru_cache(maxsize=1024)
def _backward_plan(grads, y):
    shape, stride, dtype = y
    y_stride, strides = row_stride(shape, stride), [row_stride(*grad[:2]) for grad in grads]
    if None in (y_stride, *strides):
        return None
    constants = _backward_tile(shape[1], dtype)
    constants |= {"GRAD_STRIDES": tuple(strides), "Y_STRIDE": y_stride, "LOADS": BACKWARD_LOADS}
    plan = _plan(shape, constants, constants)
    constants["WIDTH"] = plan.partials[2]
    constants |= _register_limit(len(grads), constants)
    return plan._replace(grid=(plan.partials[1], constants["TILES"]))


def _plan(shape, constants, backward_tile):
    num_rows = shape.numel() // shape[1]
    grid = triton.cdiv(num_rows, constants["ROWS"]), constants["TILES"]
    programs = min(triton.cdiv(num_rows, backward_tile["ROWS"]), MAX_BACKWARD_PROGRAMS)
    width = triton.cdiv(shape[1], PARTIAL_CHANNELS) * PARTIAL_CHANNELS
    bits = num_rows, constants["TILES"] * constants["PADDED"] // 8
    return Plan(grid, num_rows, constants, bits, (2, programs, width))


def _register_limit(gradients, constants):
    # Triton's backend for AMD does not know the option and raises a KeyError
    if torch.version.hip:
        return {}
    is_masked = constants["CHANNELS"] % constants["PADDED"] != 0
    return {"maxnreg": WIDE_BACKWARD_REGISTERS if gradients > 2 or is_masked else BACKWARD_REGISTERS}


def tile(channels, dtype, loads):
    """The compile-time values of both kernels for rows of `channels`; a thread loads 16 bytes `loads` times."""
    padded, tiles = _tiles(channels)
    return {
        "CHANNELS": channels,
        "PADDED": padded,
        "TILES": tiles,
        "ROWS": loads * 16 * 32 * NUM_WARPS // dtype.itemsize // padded,
        "SMALLEST": SMALLEST_SLOPE[dtype],
        "num_warps": NUM_WARPS,
    }


def _backward_tile(channels, dtype):
    constants = tile(channels, dtype, BACKWARD_LOADS)
    if channels < constants["PADDED"] == 8:
        # numbers that are loaded one by one need more registers for their addresses, and would spill
        constants["ROWS"] //= 2
    return constants


def _tiles(channels):
    """The channels of a tile, a power of two with whole bytes of bits, and how many tiles a row has."""
    if channels <= WIDEST_TILE:
        return max(8, triton.next_power_of_2(channels)), 1
    # the widest that divides the row, so that no thread idles
    padded = WIDEST_TILE
    while channels % padded and padded > NARROWEST_CUT:
        padded //= 2
    if channels % padded:
        padded = WIDEST_TILE
    return padded, triton.cdiv(channels, padded)


def row_stride(shape, stride):
    """The elements from one voxel to the next, or None if the tensor is not rows of adjacent channels."""
    channels = shape[1]
    # the stride of an axis of length 1 means nothing
    axes = [axis for axis in (*range(len(shape) - 1, 1, -1), 0) if shape[axis] > 1]
    distance = expected = stride[axes[0]] if axes else channels
    for axis in axes:
        if stride[axis] != expected:
            return None
        expected *= shape[axis]
    adjacent = channels == 1 or stride[1] == 1
    return distance if adjacent and distance >= channels else None


def _is_contiguous(shape, stride):
    expected = 1
    for length, distance in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and distance != expected:
            return False
        expected *= length
    return True
