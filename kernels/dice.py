"""The sums of the Dice loss over the voxels of each (volume, class) and their gradient, each in one pass.

With p the activated logits and g the target, both zero where the target is ignored:

    intersection = Σ p g    or, soft, Σ (|p| + |g| - |p - g|) / 2
    prediction   = Σ p      or, squared, Σ p²; soft, Σ |p|
    ground       = Σ g      or, squared, Σ g²; soft, Σ |g|

With a and b the gradients of intersection and prediction, the gradients of p and of the logits are

    d_c = a g_c + b         or, squared, a g_c + 2 b p_c; soft, (b + a/2) sign(p_c) - a/2 sign(p_c - g_c)
    p_c (d_c - Σ_k p_k d_k) with a softmax, p_c (1 - p_c) d_c with a sigmoid

An option adds the sums of an entropy, from the same voxels in registers: see `kernels/dice_entropy.py`.

Source: Milletari, Navab, Ahmadi 2016, section 3. The definition is `dice_sums_definition` in
`vnet_fast/ops/dice.py`; the one deviation is that labels outside 0 … C - 1 are ignored here, where the definition
raises.

Layout: channels-last or contiguous volumes. Those of the logits may be cropped: then a program divides the numbers of
its voxels by width and height, to find where they are. The gradient is dense.

Bytes moved: forward logits + target, backward 2 × logits + target; labels never become one-hot.
Saved for the backward pass: the inputs, from which the probabilities are computed again.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.dice_blocks import load_tile, store_tile
from vnet_fast.kernels.dice_entropy import LOG2_E, classes_of, entropies, entropy_gradient, softmax_parts
from vnet_fast.kernels.dice_layouts import LAUNCH, plan_of, supports
from vnet_fast.kernels.launch import on_device_of

__all__ = ["dice_sums", "dice_sums_backward", "plan_of", "supports"]


@triton.jit
def _load_labels(pointer, counted, FORM: tl.constexpr):
    """A tile of zeros and ones, and `counted` without the voxels that are ignored."""
    label = tl.load(pointer + tl.arange(0, FORM.block), mask=counted, other=0)
    label = label.to(tl.float32 if label.dtype.is_floating() else tl.int64)
    if FORM.ignore_index is not None:
        counted = counted & (label != FORM.ignore_index)
    label = tl.expand_dims(label.to(tl.int64), FORM.axis)
    target = (label == classes_of(FORM)) & tl.expand_dims(counted, FORM.axis)
    return tl.where(target, 1.0, 0.0), counted


@triton.jit
def _activate(x, FORM: tl.constexpr):
    if FORM.activation == "softmax":
        _, exponential, total = softmax_parts(x, FORM)
        # one division for a voxel, not one for each class
        x = exponential * tl.expand_dims(1 / total, FORM.axis)
    elif FORM.activation == "sigmoid":
        x = 1 / (1 + tl.exp2(-x * LOG2_E))
    return x


@triton.jit
def _load_block(input_ptr, target_ptr, start, remaining, voxels, crop, FORM: tl.constexpr):
    """The logits and the target of a block, and ones where a voxel counts, else zeros."""
    counted = tl.arange(0, FORM.block) < remaining
    logits = load_tile(input_ptr, start, remaining, voxels, crop, FORM)
    if FORM.labels:
        target, counted = _load_labels(target_ptr + start, counted, FORM)
    else:
        target = load_tile(target_ptr, start, remaining, voxels, None, FORM)
    # numbers and not flags, so that NaN stays NaN where it does not count, as in the definition
    counted = tl.expand_dims(tl.where(counted, 1.0, 0.0), FORM.axis)
    return logits, target, counted


@triton.jit
def _add_block(pair, prediction, entropy, input_ptr, target_ptr, start, remaining, voxels, crop, FORM: tl.constexpr):
    """Adds a block to the sums, of which `pair` is intersection and ground truth."""
    logits, g, counted = _load_block(input_ptr, target_ptr, start, remaining, voxels, crop, FORM)
    p = _activate(logits, FORM)
    if FORM.sums > 3:
        first, second = entropies(logits, g, counted, FORM)
        entropy += tl.join(first, second) if FORM.sums == 5 else first
    # the compiler drops the work on classes that are zero here
    kept = classes_of(FORM) >= FORM.first_class
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
    return pair, prediction, entropy


@triton.jit
def _store_sums(pair, prediction, entropy, partial_ptr, FORM: tl.constexpr):
    """Stores the sums of a program."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    volume, volumes = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    intersection, ground = tl.split(tl.sum(pair, 1 - FORM.axis))
    classes = tl.arange(0, FORM.padded)
    kept = (classes >= FORM.first_class) & (classes < FORM.classes)
    # (sums, volumes, classes from the first one on, programs)
    partial_ptr += (volume * (FORM.classes - FORM.first_class) + classes - FORM.first_class) * programs + program
    stride = volumes * (FORM.classes - FORM.first_class) * programs
    tl.store(partial_ptr, intersection, mask=kept)
    tl.store(partial_ptr + stride, tl.sum(prediction, 1 - FORM.axis), mask=kept)
    tl.store(partial_ptr + 2 * stride, ground, mask=kept)
    if FORM.sums == 4:
        tl.store(partial_ptr + 3 * stride, tl.sum(entropy, 1 - FORM.axis), mask=kept)
    elif FORM.sums == 5:
        first, second = tl.split(tl.sum(entropy, 1 - FORM.axis))
        tl.store(partial_ptr + 3 * stride, first, mask=kept)
        tl.store(partial_ptr + 4 * stride, second, mask=kept)


# compiled once for crops of all sizes
CROP = ("width", "height", "stride_volume", "stride_class", "stride_slice", "stride_row")


@triton.jit(do_not_specialize=CROP)
def _dice_forward_kernel(
    input_ptr, target_ptr, partial_ptr, voxels, width, height, stride_volume, stride_class, stride_slice, stride_row,
    FORM: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    volume = tl.program_id(1).to(tl.int64)
    voxels = tl.cast(voxels, tl.int64)
    crop = None
    if width is None:
        input_ptr += volume * voxels * FORM.classes
    else:
        input_ptr += volume * stride_volume
        crop = (width, height, stride_class, stride_slice, stride_row)
    target_ptr += volume * voxels * (1 if FORM.labels else FORM.classes)
    # Triton 3.6 takes no attribute for a shape
    ROWS: tl.constexpr = FORM.rows
    COLUMNS: tl.constexpr = FORM.columns
    prediction = tl.zeros((ROWS, COLUMNS), tl.float32)
    # One tile holds two sums. In a tile of its own, Triton would lay out the target's sum in another way, and move
    # the labels through shared memory.
    pair = tl.join(prediction, prediction)
    entropy = pair if FORM.sums == 5 else prediction
    whole = voxels // FORM.block
    for block in range(program, whole, programs):
        # a constant, so that the compiler drops the masks
        start, remaining = block * FORM.block, FORM.block
        pair, prediction, entropy = _add_block(
            pair, prediction, entropy, input_ptr, target_ptr, start, remaining, voxels, crop, FORM
        )
    if program == programs - 1:
        start, remaining = whole * FORM.block, (voxels - whole * FORM.block).to(tl.int32)
        pair, prediction, entropy = _add_block(
            pair, prediction, entropy, input_ptr, target_ptr, start, remaining, voxels, crop, FORM
        )
    _store_sums(pair, prediction, entropy, partial_ptr, FORM)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _write_block(a, b, c, s, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, crop, FORM: tl.constexpr):
    logits, g, counted = _load_block(input_ptr, target_ptr, start, remaining, voxels, crop, FORM)
    p = _activate(logits, FORM)
    if FORM.terms == "squared":
        d = a * g + 2 * b * p
    elif FORM.terms == "soft":
        d = (b + a * 0.5) * _sign(p) - a * 0.5 * _sign(p - g)
    else:
        d = a * g + b
    d = tl.where(classes_of(FORM) >= FORM.first_class, d * counted, 0.0)
    if FORM.activation == "softmax":
        d = p * (d - tl.expand_dims(tl.sum(p * d, FORM.axis), FORM.axis))
    elif FORM.activation == "sigmoid":
        d = p * (1 - p) * d
    if FORM.sums > 3:
        d += entropy_gradient(c, s, logits, g, counted, FORM)
    store_tile(grad_input_ptr, d.to(grad_input_ptr.dtype.element_ty), start, remaining, voxels, FORM)


@triton.jit(do_not_specialize=CROP)
def _dice_backward_kernel(
    input_ptr, target_ptr, grad_sums_ptr, grad_input_ptr, voxels, width, height, stride_volume, stride_class,
    stride_slice, stride_row, FORM: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    volume, volumes = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    voxels = tl.cast(voxels, tl.int64)
    crop = None
    if width is None:
        input_ptr += volume * voxels * FORM.classes
    else:
        input_ptr += volume * stride_volume
        crop = (width, height, stride_class, stride_slice, stride_row)
    grad_input_ptr += volume * voxels * FORM.classes
    target_ptr += volume * voxels * (1 if FORM.labels else FORM.classes)
    classes = classes_of(FORM)
    kept = (classes >= FORM.first_class) & (classes < FORM.classes)
    grad_sums_ptr += volume * (FORM.classes - FORM.first_class) + classes - FORM.first_class
    a = tl.load(grad_sums_ptr, mask=kept, other=0)
    stride = volumes * (FORM.classes - FORM.first_class)
    b = tl.load(grad_sums_ptr + stride, mask=kept, other=0)
    # of the entropy's sums
    c, s = a, b
    if FORM.sums > 3:
        c = tl.load(grad_sums_ptr + 3 * stride, mask=kept, other=0)
    if FORM.sums == 5:
        s = tl.load(grad_sums_ptr + 4 * stride, mask=kept, other=0)
    whole = voxels // FORM.block
    for block in range(program, whole, programs):
        start, remaining = block * FORM.block, FORM.block
        _write_block(a, b, c, s, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, crop, FORM)
    if program == programs - 1:
        start, remaining = whole * FORM.block, (voxels - whole * FORM.block).to(tl.int32)
        _write_block(a, b, c, s, input_ptr, target_ptr, grad_input_ptr, start, remaining, voxels, crop, FORM)


def dice_sums(input, target, options, plan=None):
    """`dice_sums` of `vnet_fast/ops/dice.py`, for tensors and options that `supports` accepts.

    Args:
        input, target, options: as there.
        plan: None, or the `plan_of` them.
    """
    plan = plan_of(input, target, options) if plan is None else plan
    partials = torch.empty(plan.partials, dtype=torch.float32, device=input.device)
    with on_device_of(input):
        _dice_forward_kernel[plan.grid](
            input, target, partials, plan.voxels, *plan.crop, plan.form, **LAUNCH[plan.form.sums > 3]
        )
    return partials.sum(-1)


def dice_sums_backward(grad_sums, input, target, options, plan=None):
    """The gradient of `input`, with its type, shape and order of axes, from the gradient of the sums.

    Args:
        grad_sums: of the shape of the sums, float32, of any strides; the third sum's gradient has no effect.
        input, target, options, plan: as for `dice_sums`.
    """
    plan = plan_of(input, target, options) if plan is None else plan
    grad_sums, grad_input = grad_sums.contiguous(), torch.empty_like(input)
    arguments = plan.voxels, *plan.crop, plan.form
    with on_device_of(input):
        _dice_backward_kernel[plan.grid](input, target, grad_sums, grad_input, *arguments, **LAUNCH[plan.form.sums > 3])
    return grad_input
