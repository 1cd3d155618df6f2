"""Stochastic gradient descent with momentum: many tensors in one launch, with copies of weights in half precision.

Formula, for every number of a tensor with weight w, momentum m and gradient g, weight decay λ, momentum factor μ,
learning rate η and the scale s of the loss:

    g' = g / s + λ w
    m' = μ m + g'
    w' = w - η m'           without a momentum factor, w - η g'; with Nesterov's momentum, w - η (g' + μ m')
    c' = w', rounded        the copy, in half precision

If the gradients of a scaled loss are not finite, nothing is written. All arithmetic is in float32, whatever the type
of g. η, s and the flag are read on the device, where a CUDA graph finds them at every replay.

Derivation: that of torch.optim.SGD, without dampening. Its m starts as g', which is what comes of zeros. Deviations
from PyTorch's fused optimiser: s is divided by as a product with 1 / s, which is exact for the powers of two that its
scaler takes, and the gradients are left as they are. What gradients are clipped by is a factor of s too.

Layout: weight, momentum, gradient and copy have the same strides and no gaps, so that their order in memory is the same
and the axes mean nothing.

Bytes moved per weight, with a gradient of b bytes and a copy of c bytes: 16 + b + c. In half precision that is 20.
With float32 weights alone, a step casts each weight in its forward pass (6 bytes) and each gradient in its backward
pass (6 bytes), and PyTorch's fused optimiser moves 20: 32 in all.

Many tensors: the network has 89 tensors of 2 to 8 million numbers. Their addresses are arguments of the launch, tuples
of `TENSORS` pointers each. A CUDA graph keeps arguments, so that there is no table of addresses that would have to be
copied to the device, which can't be done while a graph is captured, whenever autograd has put gradients elsewhere. A
program finds its tensor by comparing its number with the first programs of all tensors, which only depend on sizes.
These are in a small table on the device, so that networks of other sizes need no other code.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.launch import on_device_of

# Pointers of 32 tensors are 1 KB of arguments, of at most 4 KB. The convolutions, the other decaying weights and the
# biases of V-Net are 26 to 30 tensors each.
TENSORS = 32
# 16 numbers for each thread: 160 bytes of loads in flight, and the search for the tensor is a tenth of the instructions
BLOCK = 4096
NUM_WARPS = 8
# most numbers of a tensor, because offsets within a tensor have 32 bits
MAX_SIZE = 2**30
# of pointers, so that Triton loads and stores 16 bytes at a time
ALIGNMENT = 16
FLOAT32, HALF = (torch.float32,), (torch.float16, torch.bfloat16)


@triton.jit
def _update(
    weight_ptr, gradient_ptr, momentum_ptr, copy_ptr, offset, mask, rate, inverse_scale, DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
):  # fmt: skip
    weight = tl.load(weight_ptr + offset, mask=mask)
    gradient = tl.load(gradient_ptr + offset, mask=mask).to(tl.float32) * inverse_scale
    if DECAY != 0:
        gradient += DECAY * weight
    if momentum_ptr is not None:
        momentum = MOMENTUM * tl.load(momentum_ptr + offset, mask=mask) + gradient
        tl.store(momentum_ptr + offset, momentum, mask=mask)
        gradient = gradient + MOMENTUM * momentum if NESTEROV else momentum
    weight -= rate * gradient
    tl.store(weight_ptr + offset, weight, mask=mask)
    if copy_ptr is not None:
        tl.store(copy_ptr + offset, weight.to(copy_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _sgd_kernel(
    weights, gradients, momenta, copies, table_ptr, rate_ptr, scale_ptr, found_inf_ptr, DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, TENSORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # two conditions, of which the first is decided when this is compiled
    if found_inf_ptr is not None:  # noqa: SIM102
        if tl.load(found_inf_ptr) != 0:
            return
    # (2, TENSORS): the first program after those of each tensor, and its size
    tensor = tl.arange(0, TENSORS)
    after = tl.load(table_ptr + tensor)
    index = tl.sum((after <= tl.program_id(0)).to(tl.int32), axis=0)
    first = tl.max(tl.where(tensor < index, after, 0), axis=0)
    size = tl.load(table_ptr + TENSORS + index)

    weight_ptr, gradient_ptr = weights[0], gradients[0]
    momentum_ptr = None if momenta is None else momenta[0]
    copy_ptr = None if copies is None else copies[0]
    for i in tl.static_range(1, TENSORS):
        weight_ptr = tl.where(index == i, weights[i], weight_ptr)
        gradient_ptr = tl.where(index == i, gradients[i], gradient_ptr)
        if momenta is not None:
            momentum_ptr = tl.where(index == i, momenta[i], momentum_ptr)
        if copies is not None:
            copy_ptr = tl.where(index == i, copies[i], copy_ptr)

    rate = tl.load(rate_ptr)
    inverse_scale = 1.0
    if scale_ptr is not None:
        inverse_scale = tl.div_rn(1.0, tl.load(scale_ptr))
    start = (tl.program_id(0) - first) * BLOCK
    # 4 numbers for a thread at a time: 16 bytes in float32. With 8 in half precision, tensors would be moved to other
    # threads through shared memory
    offset = tl.max_contiguous(start + tl.arange(0, BLOCK), 4)
    if start + BLOCK <= size:
        _update(weight_ptr, gradient_ptr, momentum_ptr, copy_ptr, offset, None, rate, inverse_scale, DECAY, MOMENTUM,
                NESTEROV)  # fmt: skip
    else:
        # not for all blocks, because of a size of any number one can't tell that 16 bytes are inside
        inside = offset < size
        _update(weight_ptr, gradient_ptr, momentum_ptr, copy_ptr, offset, inside, rate, inverse_scale, DECAY, MOMENTUM,
                NESTEROV)  # fmt: skip


def supports(weight, gradient, momentum=None, copy=None):
    """Whether the kernel can handle what belongs to one tensor of weights; if not, the definition runs.

    Args:
        weight: float32, of 1 to 2³⁰ numbers, in any order without gaps that is contiguous or channels-last.
        gradient: float32, float16 or bfloat16.
        momentum: None, or float32.
        copy: None, or float16 or bfloat16.

    All have the shape and strides of `weight`, and begin at a multiple of 16 bytes.
    """
    given = (weight, gradient, momentum, copy)
    # in every step the same for each tensor, but for the address
    forms = tuple(t if t is None else (t.dtype, t.shape, t.stride(), t.get_device()) for t in given)
    return _fit(*forms) and all(t is None or t.data_ptr() % ALIGNMENT == 0 for t in given)


@functools.lru_cache(maxsize=4096)
def _fit(*forms):
    """Whether tensors of these types, shapes, strides and devices belong together; the first is the weight."""
    (dtype, shape, strides, device), *_ = forms
    weight = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if not 0 < weight.numel() <= MAX_SIZE or not _is_dense(weight):
        return False
    return all(
        form is None or (form[0] in types and form[3] == device and _has_order(shape, strides, *form[1:3]))
        for form, types in zip(forms, (FLOAT32, (*FLOAT32, *HALF), FLOAT32, HALF), strict=True)
    )


def sgd(
    weights, gradients, momenta, copies, rate, momentum, weight_decay, grad_scale=None, found_inf=None, nesterov=False
):
    """Updates weights, momenta and copies in place, for tensors that `supports` accepts.

    A CUDA graph can hold it if tensors of these sizes were updated before.

    Args:
        weights: list of tensors.
        gradients: list of tensors of one type.
        momenta: list of tensors, or None for a momentum factor of zero.
        copies: list of tensors of one type, or None.
        rate: learning rate, (), float32, on the device.
        momentum: the momentum factor.
        weight_decay: the factor of the weights that is added to the gradients.
        grad_scale: None, or what the gradients are divided by, (), float32, on the device.
        found_inf: None, or (), float32, on the device; unless it is zero nothing is written.
        nesterov: whether the momentum is Nesterov's.
    """
    constants = {"DECAY": weight_decay, "MOMENTUM": momentum, "NESTEROV": nesterov, "TENSORS": TENSORS, "BLOCK": BLOCK}
    with on_device_of(weights[0]):
        for first in range(0, len(weights), TENSORS):
            part = slice(first, first + TENSORS)
            table, programs = _table(tuple(weight.numel() for weight in weights[part]), weights[0].device)
            tuples = [some and _padded(some[part]) for some in (weights, gradients, momenta, copies)]
            _sgd_kernel[(programs,)](*tuples, table, rate, grad_scale, found_inf, **constants, num_warps=NUM_WARPS)


def _padded(tensors):
    # programs see the first of them only
    return (*tensors, *[tensors[0]] * (TENSORS - len(tensors)))


# The tables of `_sgd_kernel`, by sizes and device. They are kept for good, because a CUDA graph reads them at every
# replay.
_tables = {}


def _table(sizes, device):
    """(2, TENSORS), int32: the first program after those of each tensor, and its size; and the number of programs."""
    if (sizes, device) not in _tables:
        after = list(itertools.accumulate(triton.cdiv(size, BLOCK) for size in sizes))
        rest = TENSORS - len(sizes)
        rows = [[*after, *[after[-1]] * rest], [*sizes, *[0] * rest]]
        _tables[sizes, device] = torch.tensor(rows, dtype=torch.int32, device=device), after[-1]
    return _tables[sizes, device]


def _is_dense(tensor):
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return tensor.is_contiguous() or (last is not None and tensor.is_contiguous(memory_format=last))


def _has_order(shape, strides, other_shape, others):
    """Whether the numbers of two tensors are in the same order in memory, without gaps."""
    if other_shape != shape:
        return False
    # the stride of an axis of length 1 means nothing
    return strides == others or all(length == 1 or a == b for length, a, b in zip(shape, strides, others, strict=True))
