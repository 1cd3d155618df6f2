"""How the kernels of `dice` load the logits of a block of voxels, and store their gradients.

Channels-last logits of 2, 4, 8, … classes are one run, which a thread loads by 16 bytes. Contiguous ones are a run for
each class. Channels-last logits of 3, 5, 6 or 7 classes begin anywhere: each is loaded on its own, and the tile is
joined of them, so that all classes of a voxel are in one thread. Neighbouring threads have neighbouring voxels, so that
the loads of the classes share their cache lines. A tile of pointers to three adjacent logits would be spread over four
threads, which then compute everything about a voxel four times.

Layout and bytes moved: see `kernels/dice.py`.
"""

import triton
import triton.language as tl

from vnet_fast.kernels.dice_entropy import classes_of


@triton.jit
def _offsets(remaining, voxels, FORM: tl.constexpr):
    """Where the logits of a block lie, from its first one on, and which of them exist."""
    if FORM.channels_last and FORM.classes == FORM.padded:
        # one run, because Triton loads a (block, 2) tile of pointers two elements at a time
        offset = tl.arange(0, FORM.block * FORM.classes)
        mask = offset < remaining * FORM.classes
    else:
        voxel, classes = tl.expand_dims(tl.arange(0, FORM.block), FORM.axis), classes_of(FORM)
        offset = voxel * FORM.step + classes * (1 if FORM.channels_last else voxels)
        mask = (voxel < remaining) & (classes < FORM.classes)
    return offset, mask


@triton.jit
def _cropped_offsets(start, crop, FORM: tl.constexpr):
    """Where the logits of a block lie in a cropped volume, from the volume's first one on."""
    if FORM.channels_last and FORM.classes == FORM.padded:
        run = tl.arange(0, FORM.block * FORM.classes)
        voxel, classes = run // FORM.classes, run % FORM.classes
    else:
        voxel, classes = tl.expand_dims(tl.arange(0, FORM.block), FORM.axis), classes_of(FORM)
    return _first_classes(voxel, start, crop, FORM) + classes.to(tl.int64) * (1 if FORM.channels_last else crop[2])


@triton.jit
def _first_classes(voxel, start, crop, FORM: tl.constexpr):
    """Where the first logits of a block's voxels lie in a cropped volume."""
    width, height, _, stride_slice, stride_row = crop
    voxel += tl.cast(start, tl.int32)
    row = voxel // width
    slice = row // height
    within_row = (voxel - row * width) * FORM.step
    return slice.to(tl.int64) * stride_slice + (row - slice * height).to(tl.int64) * stride_row + within_row


@triton.jit
def _load_class(pointer, mask, CLASS: tl.constexpr, FORM: tl.constexpr):
    # Triton 3.6 takes no attribute for a shape
    BLOCK: tl.constexpr = FORM.block
    if FORM.classes > CLASS:
        logit = tl.load(pointer + CLASS, mask=mask, other=0).to(tl.float32)
    else:
        logit = tl.zeros((BLOCK,), tl.float32)
    return logit


@triton.jit
def _load_2_classes(pointer, mask, FIRST: tl.constexpr, STEP: tl.constexpr, FORM: tl.constexpr):
    """A (block, 2) tile of the classes FIRST and FIRST + STEP; `pointer` is (block,), to the first class of voxels."""
    return tl.join(_load_class(pointer, mask, FIRST, FORM), _load_class(pointer, mask, FIRST + STEP, FORM))


@triton.jit
def _load_4_classes(pointer, mask, FIRST: tl.constexpr, STEP: tl.constexpr, FORM: tl.constexpr):
    even = _load_2_classes(pointer, mask, FIRST, 2 * STEP, FORM)
    odd = _load_2_classes(pointer, mask, FIRST + STEP, 2 * STEP, FORM)
    return tl.reshape(tl.join(even, odd), (FORM.block, 4))


@triton.jit
def _load_8_classes(pointer, mask, FORM: tl.constexpr):
    even, odd = _load_4_classes(pointer, mask, 0, 2, FORM), _load_4_classes(pointer, mask, 1, 2, FORM)
    return tl.reshape(tl.join(even, odd), (FORM.block, 8))


@triton.jit
def _store_class(pointer, value, mask, CLASS: tl.constexpr, FORM: tl.constexpr):
    if FORM.classes > CLASS:
        tl.store(pointer + CLASS, value, mask=mask)


@triton.jit
def _store_2_classes(pointer, value, mask, FIRST: tl.constexpr, STEP: tl.constexpr, FORM: tl.constexpr):
    first, second = tl.split(value)
    _store_class(pointer, first, mask, FIRST, FORM)
    _store_class(pointer, second, mask, FIRST + STEP, FORM)


@triton.jit
def _store_4_classes(pointer, value, mask, FIRST: tl.constexpr, STEP: tl.constexpr, FORM: tl.constexpr):
    even, odd = tl.split(tl.reshape(value, (FORM.block, 2, 2)))
    _store_2_classes(pointer, even, mask, FIRST, 2 * STEP, FORM)
    _store_2_classes(pointer, odd, mask, FIRST + STEP, 2 * STEP, FORM)


@triton.jit
def _store_8_classes(pointer, value, mask, FORM: tl.constexpr):
    even, odd = tl.split(tl.reshape(value, (FORM.block, 4, 2)))
    _store_4_classes(pointer, even, mask, 0, 2, FORM)
    _store_4_classes(pointer, odd, mask, 1, 2, FORM)


@triton.jit
def load_tile(pointer, start, remaining, voxels, crop, FORM: tl.constexpr):
    """The logits of a block, or its target of numbers, as float32; zeros where there are none."""
    if FORM.split:
        voxel = tl.arange(0, FORM.block)
        if crop is None:
            pointer += start * FORM.step + voxel * FORM.step
        else:
            pointer += _first_classes(voxel, start, crop, FORM)
        if FORM.padded == 4:
            tile = _load_4_classes(pointer, voxel < remaining, 0, 1, FORM)
        else:
            tile = _load_8_classes(pointer, voxel < remaining, FORM)
    else:
        offset, mask = _offsets(remaining, voxels, FORM)
        if crop is None:
            pointer += start * FORM.step
        else:
            offset = _cropped_offsets(start, crop, FORM)
        tile = tl.reshape(tl.load(pointer + offset, mask=mask, other=0).to(tl.float32), (FORM.rows, FORM.columns))
    return tile


@triton.jit
def store_tile(pointer, value, start, remaining, voxels, FORM: tl.constexpr):
    """Stores the gradients of a block, which are dense."""
    pointer += start * FORM.step
    if FORM.split:
        voxel = tl.arange(0, FORM.block)
        pointer += voxel * FORM.step
        if FORM.padded == 4:
            _store_4_classes(pointer, value, voxel < remaining, 0, 1, FORM)
        else:
            _store_8_classes(pointer, value, voxel < remaining, FORM)
    else:
        offset, mask = _offsets(remaining, voxels, FORM)
        tl.store(pointer + offset, tl.reshape(value, offset.shape), mask=mask)
