"""The sums of the Dice loss over the voxels of each (volume, class) and their gradient, each in one pass.

With p the activated logits and g the target, both zero where the target is ignored:

    intersection = Σ p g    or, soft, Σ (|p| + |g| - |p - g|) / 2
    prediction   = Σ p      or, squared, Σ p²; soft, Σ |p|
    ground       = Σ g      or, squared, Σ g²; soft, Σ |g|

With a and b the gradients of intersection and prediction, the gradients of p and of the logits are

    d_c = a g_c + b         or, squared, a g_c + 2 b p_c; soft, (b + a/2) sign(p_c) - a/2 sign(p_c - g_c)
    p_c (d_c - Σ_k p_k d_k) with a softmax, p_c (1 - p_c) d_c with a sigmoid

Source: Milletari, Navab, Ahmadi 2016, section 3. The definition is `dice_sums_definition` in
`vnet_fast/ops/dice.py`; the one deviation is that labels outside 0 … C - 1 are ignored here, where the definition
raises.

Bytes moved: forward logits + target, backward 2 × logits + target; labels never become one-hot.
Saved for the backward pass: the inputs, from which the probabilities are computed again.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

NUM_WARPS = 4
# bytes of logits that a program loads at a time: 16, the widest load, for each of its threads
ROW_BYTES = 16 * 32 * NUM_WARPS
# most logits of a block: 32 for each thread, with three sums of each in registers
MAX_TILE = 4096
# fewest blocks of a program, so that the sum over its threads is a small part of its work
MIN_BLOCKS = 4
# most programs of a volume: four times what 132 multiprocessors hold, so that few are idle at the end
MAX_PROGRAMS = 8192
# all classes of a voxel are kept in registers
MAX_CLASSES = 32
# CUDA's limit of the grid's second axis
MAX_VOLUMES = 65535
# e^x is 2^(x log2 e), in which Triton flushes denormals: three instructions fewer than in its e^x
LOG2_E = tl.constexpr(math.log2(math.e))
INPUT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
TARGET_TYPES = (*INPUT_TYPES, *INTEGER_TYPES, torch.bool)


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
    activation: str
    labels: bool
    first_class: int
    terms: str  # plain, squared or soft
    ignore_index: int | None


@triton.jit
def _classes(FORM: tl.constexpr):
    return tl.expand_dims(tl.arange(0, FORM.padded), 1 - FORM.axis)


@triton.jit
def _offsets(remaining, voxels, FORM: tl.constexpr):
    """Where the logits of a block lie, from its first one on, and which of them exist."""
    if FORM.channels_last and FORM.classes == FORM.padded:
        # one run, because Triton loads a (block, 2) tile of pointers two elements at a time
        offset = tl.arange(0, FORM.block * FORM.classes)
        mask = offset < remaining * FORM.classes
    else:
        voxel, classes = tl.expand_dims(tl.arange(0, FORM.block), FORM.axis), _classes(FORM)
        offset = voxel * FORM.step + classes * (1 if FORM.channels_last else voxels)
        mask = (voxel < remaining) & (classes < FORM.classes)
    return offset, mask


@triton.jit
def _load(pointer, remaining, voxels, FORM: tl.constexpr):
    offset, mask = _offsets(remaining, voxels, FORM)
    return tl.reshape(tl.load(pointer + offset, mask=mask, other=0).to(tl.float32), (FORM.rows, FORM.columns))


@triton.jit
def _load_labels(pointer, counted, FORM: tl.constexpr):
    """A tile of zeros and ones, and `counted` without the voxels that are ignored."""
    label = tl.load(pointer + tl.arange(0, FORM.block), mask=counted, other=0)
    label = label.to(tl.float32 if label.dtype.is_floating() else tl.int64)
    if FORM.ignore_index is not None:
        counted = counted & (label != FORM.ignore_index)
    label = tl.expand_dims(label.to(tl.int64), FORM.axis)
    target = (label == _classes(FORM)) & tl.expand_dims(counted, FORM.axis)
    return tl.where(target, 1.0, 0.0), counted


@triton.jit
def _activate(x, FORM: tl.constexpr):
    if FORM.activation == "softmax":
        if FORM.classes != FORM.padded:
            x = tl.where(_classes(FORM) < FORM.classes, x, float("-inf"))
        x = tl.exp2((x - tl.expand_dims(tl.max(x, FORM.axis), FORM.axis)) * LOG2_E)
        # one division for a voxel, not one for each class
        x = x * tl.expand_dims(1 / tl.sum(x, FORM.axis), FORM.axis)
    elif FORM.activation == "sigmoid":
        x = 1 / (1 + tl.exp2(-x * LOG2_E))
    return x


@triton.jit
def _load_block(input_ptr, target_ptr, start, remaining, voxels, FORM: tl.constexpr):
    """The probability and the target of a block, and ones where a voxel counts, else zeros."""
    counted = tl.arange(0, FORM.block) < remaining
    logits = _load(input_ptr + start * FORM.step, remaining, voxels, FORM)
    if FORM.labels:
        target, counted = _load_labels(target_ptr + start, counted, FORM)
    else:
        target = _load(target_ptr + start * FORM.step, remaining, voxels, FORM)
    # numbers and not flags, so that NaN stays NaN where it does not count, as in the definition
    counted = tl.expand_dims(tl.where(counted, 1.0, 0.0), FORM.axis)
    return _activate(logits, FORM), target, counted


@triton.jit
def _add_block(pair, prediction, input_ptr, target_ptr, start, remaining, voxels, FORM: tl.constexpr):
    """Adds a block to the sums, of which `pair` is intersection and ground truth."""
    p, g, counted = _load_block(input_ptr, target_ptr, start, remaining, voxels, FORM)
    # the compiler drops the work on classes that are zero here
    kept = _classes(FORM) >= FORM.first_class
    p, g = tl.where(kept, p * counted, 0.0), tl.where(kept, g, 0.0)
    if FORM.terms == "squared":
        pair += tl.join(p * g, g * g)
        prediction += p * p
    elif FORM.terms == "soft":
        pair += tl.join((tl.abs(p) + tl.abs(g) - tl.abs(p - g)) * 0.5, tl.abs(g))
        prediction += tl.abs(p)
    else:
        pair += tl.join(p * g, g)
        prediction += p
    return pair, prediction


@triton.jit
def _dice_forward_kernel(input_ptr, target_ptr, partial_ptr, voxels, FORM: tl.constexpr):
    program, programs = tl.program_id(0), tl.num_programs(0)
    volume, volumes = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    voxels = tl.cast(voxels, tl.int64)
    input_ptr += volume * voxels * FORM.classes
    target_ptr += volume * voxels * (1 if FORM.labels else FORM.classes)
    # Triton 3.6 takes no attribute for a shape
    ROWS: tl.constexpr = FORM.rows
    COLUMNS: tl.constexpr = FORM.columns
    prediction = tl.zeros((ROWS, COLUMNS), tl.float32)
    # One tile holds two sums. In a tile of its own, Triton would lay out the target's sum in another way, and move
    # the labels through shared memory.
    pair = tl.join(prediction, prediction)
    whole = voxels // FORM.block
    for block in range(program, whole, programs):
        # a constant, so that the compiler drops the masks
        start, remaining = block * FORM.block, FORM.block
        pair, prediction = _add_block(pair, prediction, input_ptr, target_ptr, start, remaining, voxels, FORM)
    if program == programs - 1:
        start, remaining = whole * FORM.block, (voxels - whole * FORM.block).to(tl.int32)
        pair, prediction = _add_block(pair, prediction, input_ptr, target_ptr, start, remaining, voxels, FORM)
    intersection, ground = tl.split(tl.sum(pair, 1 - FORM.axis))
    classes = tl.arange(0, FORM.padded)
    kept = (classes >= FORM.first_class) & (classes < FORM.classes)
    # (3, volumes, classes from the first one on, programs)
    partial_ptr += (volume * (FORM.classes - FORM.first_class) + classes - FORM.first_class) * programs + program
    stride = volumes * (FORM.classes - FORM.first_class) * programs
    tl.store(partial_ptr, intersection, mask=kept)
    tl.store(partial_ptr + stride, tl.sum(prediction, 1 - FORM.axis), mask=kept)
    tl.store(partial_ptr + 2 * stride, ground, mask=kept)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _write_block(a, b, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, FORM: tl.constexpr):
    p, g, counted = _load_block(input_ptr, target_ptr, start, remaining, voxels, FORM)
    if FORM.terms == "squared":
        d = a * g + 2 * b * p
    elif FORM.terms == "soft":
        d = (b + a * 0.5) * _sign(p) - a * 0.5 * _sign(p - g)
    else:
        d = a * g + b
    d = tl.where(_classes(FORM) >= FORM.first_class, d * counted, 0.0)
    if FORM.activation == "softmax":
        d = p * (d - tl.expand_dims(tl.sum(p * d, FORM.axis), FORM.axis))
    elif FORM.activation == "sigmoid":
        d = p * (1 - p) * d
    offset, mask = _offsets(remaining, voxels, FORM)
    grad = tl.reshape(d.to(grad_input_ptr.dtype.element_ty), offset.shape)
    tl.store(grad_input_ptr + start * FORM.step + offset, grad, mask=mask)


@triton.jit
def _dice_backward_kernel(input_ptr, target_ptr, grad_sums_ptr, grad_input_ptr, voxels, FORM: tl.constexpr):
    program, programs = tl.program_id(0), tl.num_programs(0)
    volume, volumes = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    voxels = tl.cast(voxels, tl.int64)
    input_ptr += volume * voxels * FORM.classes
    grad_input_ptr += volume * voxels * FORM.classes
    target_ptr += volume * voxels * (1 if FORM.labels else FORM.classes)
    classes = _classes(FORM)
    kept = (classes >= FORM.first_class) & (classes < FORM.classes)
    grad_sums_ptr += volume * (FORM.classes - FORM.first_class) + classes - FORM.first_class
    a = tl.load(grad_sums_ptr, mask=kept, other=0)
    b = tl.load(grad_sums_ptr + volumes * (FORM.classes - FORM.first_class), mask=kept, other=0)
    whole = voxels // FORM.block
    for block in range(program, whole, programs):
        start, remaining = block * FORM.block, FORM.block
        _write_block(a, b, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, FORM)
    if program == programs - 1:
        start, remaining = whole * FORM.block, (voxels - whole * FORM.block).to(tl.int32)
        _write_block(a, b, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, FORM)


def _is_channels_last(tensor):
    return tensor.movedim(1, -1).is_contiguous()


def form_of(input, target, options):
    """The `Form` of both kernels for these tensors and options."""
    classes, channels_last = input.shape[1], _is_channels_last(input)
    padded = triton.next_power_of_2(classes)
    row = ROW_BYTES // input.element_size()
    block = row // padded if channels_last else min(row, MAX_TILE // padded)
    terms = "squared" if options.squared else "soft" if options.soft else "plain"
    ignore_index = options.ignore_index
    if ignore_index is not None and target.dtype in INTEGER_TYPES:
        # as PyTorch compares: the number in the labels' type, -1 being 255 for uint8
        limits = torch.iinfo(target.dtype)
        ignore_index = (ignore_index - limits.min) % (limits.max - limits.min + 1) + limits.min
    rows, columns, axis, step = (block, padded, 1, classes) if channels_last else (padded, block, 0, 1)
    tile = classes, padded, block, rows, columns, axis, step, channels_last
    return Form(*tile, options.activation, options.labels, options.first_class, terms, ignore_index)


def _num_programs(input, form):
    return min(triton.cdiv(math.prod(input.shape[2:]), MIN_BLOCKS * form.block), MAX_PROGRAMS)


def _launch(kernel, input, form, *tensors):
    grid = (_num_programs(input, form), len(input))
    with torch.cuda.device_of(input):
        kernel[grid](*tensors, math.prod(input.shape[2:]), form, num_warps=NUM_WARPS)


def dice_sums(input, target, options):
    """`dice_sums` of `vnet_fast/ops/dice.py`, for tensors and options that `supports` accepts."""
    form = form_of(input, target, options)
    shape = (3, len(input), form.classes - form.first_class, _num_programs(input, form))
    partials = torch.empty(shape, dtype=torch.float32, device=input.device)
    _launch(_dice_forward_kernel, input, form, input, target, partials)
    return partials.sum(-1)


def dice_sums_backward(grad_sums, input, target, options):
    """The gradient of `input`, with its type, shape and strides, from the gradient of the sums.

    Args:
        grad_sums: (3, N, C - first_class), float32, of any strides; the third sum's gradient has no effect.
    """
    form, grad_input = form_of(input, target, options), torch.empty_like(input)
    _launch(_dice_backward_kernel, input, form, input, target, grad_sums.contiguous(), grad_input)
    return grad_input


def supports(input, target, options):
    """Whether the kernels can handle these tensors and options; if not, the definition runs."""
    num_volumes, num_classes = input.shape[:2]
    in_layout = _is_channels_last if _is_channels_last(input) else torch.Tensor.is_contiguous
    return (
        input.dtype in INPUT_TYPES
        and target.dtype in TARGET_TYPES
        and input.numel() > 0
        and num_volumes <= MAX_VOLUMES
        and 0 <= options.first_class < num_classes <= MAX_CLASSES
        and options.activation in ("none", "sigmoid", "softmax")
        and (options.labels or options.ignore_index is None)
        and target.shape == (num_volumes, 1 if options.labels else num_classes, *input.shape[2:])
        and in_layout(input)
        and (target.is_contiguous() if options.labels else in_layout(target))
    )
