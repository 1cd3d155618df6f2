"""Which tensors the kernels of `dice` take, and how each launch is cut into tiles.

A launch depends on shapes, strides, types and options alone, so it is planned once for each combination of them and
looked up from then on.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

NUM_WARPS = 4
# bytes of logits that a program loads at a time: 16, the widest load, for each of its threads
ROW_BYTES = 16 * 32 * NUM_WARPS
# most logits of a block: 32 for each thread, with three sums of each in registers
MAX_TILE = 4096
# the same with the sums of an entropy, for up to 4 classes and for more, which need more registers
MAX_ENTROPY_TILES = (2048, 1024)
# fewest blocks of a program, so that the sum over its threads is a small part of its work
MIN_BLOCKS = 4
# most programs of a volume: four times what 132 multiprocessors hold, so that few are idle at the end
MAX_PROGRAMS = 8192
# Of channels-last logits whose number of classes is no power of two, and the voxels of a thread: adjacent logits can't
# be loaded at once, since they begin anywhere.
MAX_SPLIT_CLASSES, SPLIT_VOXELS = 8, 4
# all classes of a voxel are kept in registers
MAX_CLASSES = 32
# How a kernel is compiled, by whether it has an entropy: left to itself, ptxas spills a few registers of some of those
# to have more programs at a time.
# AMD's compiler has no such limit.
LIMIT = {} if torch.version.hip else {"maxnreg": 255}
LAUNCH = {False: {"num_warps": NUM_WARPS}, True: {"num_warps": NUM_WARPS, **LIMIT}}
# CUDA's limit of the grid's second axis
MAX_VOLUMES = 65535
# of a cropped volume, whose voxels are counted in 32 bits to find their rows
MAX_CROPPED_VOXELS = 2**31 - 1
INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TARGET_TYPES = (*INPUT_TYPES, *INTEGER_TYPES, torch.bool)
ACTIVATIONS = ("none", "sigmoid", "softmax")
# the number of sums by the entropy among them
SUMS = {"none": 3, "softmax": 4, "sigmoid": 5}


@dataclass(frozen=True)
class Form:
    """What is compiled into a kernel: the shape of its tiles, and the options of the sums."""

    classes: int
    padded: int  # classes of a tile, a power of two
    block: int  # voxels of a tile
    rows: int  # of a tile
    columns: int  # of a tile
    axis: int  # of the classes in a tile
    step: int  # elements from a voxel to the next
    channels_last: bool
    split: bool  # whether each class is loaded on its own
    activation: str
    labels: bool
    first_class: int
    terms: str  # plain, squared or soft
    ignore_index: int | None
    entropy: str
    gamma: float | None
    sums: int


class Plan(NamedTuple):
    """A launch of the forward or the backward kernel."""

    form: Form
    grid: tuple[int, int]
    voxels: int
    # width, height, and elements from a volume, class, slice and row to the next; None for dense logits
    crop: tuple[int | None, ...]
    # the shape of the partial sums
    partials: tuple[int, int, int, int]


def plan_of(input, target, options):
    """The launch of the kernels for these tensors and options, or None for those that `supports` refuses."""
    layouts = input.shape, input.stride(), input.dtype, target.shape, target.stride(), target.dtype
    return _plan(*layouts, options)


def supports(input, target, options):
    """Whether the kernels can handle these tensors and options; if not, the definition runs.

    Args:
        input: (N, C, *spatial), channels-last or contiguous; volumes may be cropped, as by `narrow` along any axis
            but the classes of channels-last ones.
        target: contiguous labels, or numbers in the dense layout of `input`.
        options: of the sums.
    """
    return plan_of(input, target, options) is not None


@functools.lru_cache(maxsize=1024)
def _plan(shape, strides, dtype, target_shape, target_strides, target_dtype, options):
    if not _are_supported(shape, dtype, target_shape, target_dtype, options):
        return None
    layout = _layout(shape, strides)
    if layout is None:
        return None
    channels_last, is_dense = layout
    target_channels_last = channels_last and not options.labels
    if not _is_crop(target_shape, target_strides, target_channels_last, dense=True):
        return None
    form, voxels = _form(shape[1], dtype, target_dtype, options, channels_last), math.prod(shape[2:])
    crop = (None,) * 6
    if not is_dense:
        if voxels > MAX_CROPPED_VOXELS:
            return None
        crop = (shape[4], shape[3], *strides[:4])
    programs = min(triton.cdiv(voxels, MIN_BLOCKS * form.block), MAX_PROGRAMS)
    return Plan(form, (programs, shape[0]), voxels, crop, (form.sums, shape[0], shape[1] - form.first_class, programs))


def _are_supported(shape, dtype, target_shape, target_dtype, options):
    num_volumes, num_classes = shape[:2]
    return (
        dtype in INPUT_TYPES
        and target_dtype in TARGET_TYPES
        and math.prod(shape) > 0
        and num_volumes <= MAX_VOLUMES
        and 0 <= options.first_class < num_classes <= MAX_CLASSES
        and options.activation in ACTIVATIONS
        and options.entropy in SUMS
        and (options.entropy == "none" or options.first_class == 0)
        and (options.labels or options.ignore_index is None)
        and target_shape == (num_volumes, 1 if options.labels else num_classes, *shape[2:])
    )


def _layout(shape, strides):
    """(whether the classes of a voxel are adjacent, whether nothing is between the logits), or None for any other."""
    for channels_last in (True, False):
        if _is_crop(shape, strides, channels_last, dense=True):
            return channels_last, True
    for channels_last in (True, False):
        if len(shape) == 5 and _is_crop(shape, strides, channels_last, dense=False):
            return channels_last, False
    return None


def _is_crop(shape, strides, channels_last, dense):
    """Whether a tensor is contiguous or channels-last, or, unless `dense`, a part of such a tensor, of whole voxels."""
    spatial = range(len(shape) - 1, 1, -1)
    axes = (1, *spatial, 0) if channels_last else (*spatial, 1, 0)
    # a row is never cut, and neither are the classes of a voxel
    whole = 2 if channels_last else 1
    needed = 1
    for place, axis in enumerate(axes):
        if shape[axis] == 1:
            continue
        if strides[axis] != needed and (dense or place < whole or strides[axis] < needed):
            return False
        needed = strides[axis] * shape[axis]
    return True


def _form(classes, dtype, target_dtype, options, channels_last):
    padded = triton.next_power_of_2(classes)
    row = ROW_BYTES // dtype.itemsize
    max_tile = MAX_TILE if options.entropy == "none" else MAX_ENTROPY_TILES[padded > 4]
    split = channels_last and classes != padded and padded <= MAX_SPLIT_CLASSES
    if split:
        block = min(SPLIT_VOXELS * 32 * NUM_WARPS, max_tile // padded)
    else:
        block = row // padded if channels_last else min(row, max_tile // padded)
    terms = "squared" if options.squared else "soft" if options.soft else "plain"
    ignore_index = options.ignore_index
    if ignore_index is not None and target_dtype in INTEGER_TYPES:
        # as PyTorch compares: the number in the labels' type, -1 being 255 for uint8
        limits = torch.iinfo(target_dtype)
        ignore_index = (ignore_index - limits.min) % (limits.max - limits.min + 1) + limits.min
    rows, columns, axis, step = (block, padded, 1, classes) if channels_last else (padded, block, 0, 1)
    tile = classes, padded, block, rows, columns, axis, step, channels_last, split
    chosen = options.activation, options.labels, options.first_class, terms, ignore_index
    sums = SUMS[options.entropy] + (options.entropy == "softmax" and options.smoothed)
    return Form(*tile, *chosen, options.entropy, options.gamma, sums)
