"""Many tensors in one launch: how a program finds its tensor, and which tensors belong together.

The network has 89 tensors of 2 to 8 million numbers. Their addresses are arguments of the launch, tuples of `TENSORS`
pointers each. A CUDA graph keeps arguments, so that there is no table of addresses that would have to be copied to the
device, which can't be done while a graph is captured, whenever autograd has put gradients elsewhere. A program finds
its tensor by comparing its number with the first programs of all tensors, which only depend on sizes. These are in a
small table on the device, so that networks of other sizes need no other code.

What belongs to a tensor of weights has its strides and no gaps, so that the order in memory is the same and the axes
mean nothing.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.launch import on_device_of

# Pointers of 32 tensors are 256 bytes of arguments, of at most 4 KB, and there are up to seven such lists. The
# convolutions, the other decaying weights and the biases of V-Net are 26 to 30 tensors each.
TENSORS = 32
# most numbers of a tensor, because offsets within a tensor have 32 bits
MAX_SIZE = 2**30
# of pointers, so that Triton loads and stores 16 bytes at a time
ALIGNMENT = 16
FLOAT32, HALF = (torch.float32,), (torch.float16, torch.bfloat16)
FLOATS = (*FLOAT32, *HALF)


@triton.jit
def place(table_ptr, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """Of a program: the index of its tensor, the first number of its block within the tensor, and the tensor's size."""
    # (2, TENSORS): the first program after those of each tensor, and its size
    tensor = tl.arange(0, TENSORS)
    after = tl.load(table_ptr + tensor)
    index = tl.sum((after <= tl.program_id(0)).to(tl.int32), axis=0)
    first = tl.max(tl.where(tensor < index, after, 0), axis=0)
    return index, (tl.program_id(0) - first) * BLOCK, tl.load(table_ptr + TENSORS + index)


@triton.jit
def pointer_at(pointers, index, TENSORS: tl.constexpr):
    """One of a tuple of pointers, or None of None."""
    if pointers is None:
        pointer = None
    else:
        pointer = pointers[0]
        for i in tl.static_range(1, TENSORS):
            pointer = tl.where(index == i, pointers[i], pointer)
    return pointer


def belong_together(given, types):
    """Whether a kernel can update what belongs to one tensor of weights.

    Args:
        given: the weight, of 1 to 2³⁰ numbers, in any order without gaps that is contiguous or channels-last; and other
            tensors or None, which must have its shape and strides. All begin at a multiple of 16 bytes.
        types: those that each may have.
    """
    # in every step the same for each tensor, but for the address
    forms = tuple(t if t is None else (t.dtype, t.shape, t.stride(), t.get_device()) for t in given)
    return _fit(forms, types) and all(t is None or t.data_ptr() % ALIGNMENT == 0 for t in given)


@functools.lru_cache(maxsize=4096)
def _fit(forms, types):
    """Whether tensors of these types, shapes, strides and devices belong together; the first is the weight."""
    (dtype, shape, strides, device), *_ = forms
    weight = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if not 0 < weight.numel() <= MAX_SIZE or not _is_dense(weight):
        return False
    return all(
        form is None or (form[0] in allowed and form[3] == device and _has_order(shape, strides, *form[1:3]))
        for form, allowed in zip(forms, types, strict=True)
    )


def launch(kernel, lists, *arguments, BLOCK, **constants):
    """Launches a kernel for every `TENSORS` tensors.

    A CUDA graph can hold it if tensors of these sizes were updated before.

    Args:
        kernel: of (pointers of each list, table, `arguments`, BLOCK, TENSORS, `constants`).
        lists: of as many tensors each, the first those of weights; or None.
        arguments: tensors on the device, or None.
        BLOCK: how many numbers of a tensor a program updates.
        constants: what is compiled in, and options of the launch.
    """
    weights = lists[0]
    with on_device_of(weights[0]):
        for first in range(0, len(weights), TENSORS):
            part = slice(first, first + TENSORS)
            sizes = tuple(weight.numel() for weight in weights[part])
            table, programs = _table(sizes, BLOCK, weights[0].device)
            tuples = [some and _padded(some[part]) for some in lists]
            kernel[(programs,)](*tuples, table, *arguments, BLOCK=BLOCK, TENSORS=TENSORS, **constants)


def _padded(tensors):
    # programs see the first of them only
    return (*tensors, *[tensors[0]] * (TENSORS - len(tensors)))


# The tables of `place`, by sizes, block and device. They are kept for good, because a CUDA graph reads them at every
# replay.
_tables = {}


def _table(sizes, block, device):
    """(2, TENSORS), int32: the first program after those of each tensor, and its size; and the number of programs."""
    key = sizes, block, device
    if key not in _tables:
        after = list(itertools.accumulate(triton.cdiv(size, block) for size in sizes))
        rest = TENSORS - len(sizes)
        rows = [[*after, *[after[-1]] * rest], [*sizes, *[0] * rest]]
        _tables[key] = torch.tensor(rows, dtype=torch.int32, device=device), after[-1]
    return _tables[key]


def _is_dense(tensor):
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return tensor.is_contiguous() or (last is not None and tensor.is_contiguous(memory_format=last))


def _has_order(shape, strides, other_shape, others):
    """Whether the numbers of two tensors are in the same order in memory, without gaps."""
    if other_shape != shape:
        return False
    # the stride of an axis of length 1 means nothing
    return strides == others or all(length == 1 or a == b for length, a, b in zip(shape, strides, others, strict=True))
