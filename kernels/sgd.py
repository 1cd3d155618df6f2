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

Bytes moved per weight, with a gradient of b bytes and a copy of c bytes: 16 + b + c. In half precision that is 20.
With float32 weights alone, a step casts each weight in its forward pass (6 bytes) and each gradient in its backward
pass (6 bytes), and PyTorch's fused optimiser moves 20: 32 in all.

One launch takes many tensors; see `many_tensors.py`.
"""

import triton
import triton.language as tl

from vnet_fast.kernels.many_tensors import FLOAT32, FLOATS, HALF, belong_together, launch, place, pointer_at

# 16 numbers for each thread: 160 bytes of loads in flight, and the search for the tensor is a tenth of the instructions
BLOCK = 4096
NUM_WARPS = 8


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
    index, start, size = place(table_ptr, TENSORS, BLOCK)
    weight_ptr = pointer_at(weights, index, TENSORS)
    gradient_ptr = pointer_at(gradients, index, TENSORS)
    momentum_ptr = pointer_at(momenta, index, TENSORS)
    copy_ptr = pointer_at(copies, index, TENSORS)

    rate = tl.load(rate_ptr)
    inverse_scale = 1.0
    if scale_ptr is not None:
        inverse_scale = tl.div_rn(1.0, tl.load(scale_ptr))
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
    return belong_together((weight, gradient, momentum, copy), (FLOAT32, FLOATS, FLOAT32, HALF))


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
    constants = {"DECAY": weight_decay, "MOMENTUM": momentum, "NESTEROV": nesterov, "num_warps": NUM_WARPS}
    launch(_sgd_kernel, (weights, gradients, momenta, copies), rate, grad_scale, found_inf, BLOCK=BLOCK, **constants)
