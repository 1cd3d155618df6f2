"""AdamW: many tensors in one launch, with copies of weights in half precision and the weights' moving average.

Formula, for every number of a tensor with weight w, gradient g, their moving averages m of g and v of g², the number t
of updates with this one, learning rate η, weight decay λ, factors β₁ and β₂, ε, and the scale s of the loss:

    g' = g / s
    m' = m + (1 - β₁) (g' - m)
    v' = β₂ v + (1 - β₂) g'²
    w' = w - η λ w - η / (1 - β₁ᵗ) · m' / (√v' / √(1 - β₂ᵗ) + ε)
    c' = w', rounded        the copy, in half precision
    a' = w' + d (a - w')    the moving average of w, with decay d

If the gradients of a scaled loss are not finite, w, m, v and c stay, and a moves towards w as it is. All arithmetic is
in float32, whatever the type of g. η, s, t, d and the flag are read on the device, where a CUDA graph finds them at
every replay.

Derivation: that of torch.optim.AdamW, and of torch._foreach_lerp_ for a. Deviations from PyTorch's fused optimiser:
1 - βᵗ is in float32, by a series where βᵗ is close to 1 and the difference would lose digits; s is divided by as a
product with 1 / s, which is exact for the powers of two that its scaler takes, and the gradients are left as they are.
What gradients are clipped by is a factor of s too. t is advanced before, in one launch for all tensors: programs of a
tensor run at any time, and all must see the same.

One launch takes many tensors; see `many_tensors.py`.

Bytes moved per weight, with a gradient of b bytes and a copy of c bytes: 24 + b + c, and 8 more with an average. In
half precision that is 36. With float32 weights alone, a step casts each weight in its forward pass (6 bytes) and each
gradient in its backward pass (6), clipping reads and writes gradients (8), PyTorch's fused optimiser moves 28, and an
average of three passes 32: 80 in all.
"""

import math

import triton
import triton.language as tl

from vnet_fast.kernels.many_tensors import FLOAT32, FLOATS, HALF, belong_together, launch, place, pointer_at

# A program updates two pieces of a tensor, because the search for the tensor and the corrections are as many
# instructions. A thread has 8 numbers of a piece, so that two blocks of threads or more fit on a multiprocessor, and
# one loads while another computes.
BLOCK = 4096
PIECE = 2048
NUM_WARPS = 8
# of the series of 1 - eˣ: from -1 to 0 the first term that is left out is far below float32's rounding
TERMS = 12
# what a factor of zero stands for, whose logarithm is needed
SMALLEST = 1e-30


@triton.jit
def _one_minus_power(step, LOG: tl.constexpr, TERMS: tl.constexpr):
    """1 - exp(LOG * step)."""
    x = LOG * step
    near, series = tl.maximum(x, -1.0), 1.0
    for i in tl.static_range(0, TERMS - 1):
        series = 1.0 + near * series * (1.0 / (TERMS - i))
    return tl.where(x > -1.0, -near * series, 1.0 - tl.exp(x))


@triton.jit
def _update(
    weight_ptr, gradient_ptr, momentum_ptr, square_ptr, copy_ptr, average_ptr, offset, mask, inverse_scale, decay,
    step_size, inverse_root, average_decay, skipped, BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    weight = tl.load(weight_ptr + offset, mask=mask)
    gradient = tl.load(gradient_ptr + offset, mask=mask).to(tl.float32)
    momentum = tl.load(momentum_ptr + offset, mask=mask)
    square = tl.load(square_ptr + offset, mask=mask)
    if average_ptr is not None:
        average = tl.load(average_ptr + offset, mask=mask)

    gradient *= inverse_scale
    new_momentum = momentum + (1 - BETA1) * (gradient - momentum)
    new_square = BETA2 * square + (1 - BETA2) * (gradient * gradient)
    new_weight = weight - decay * weight
    new_weight -= step_size * new_momentum / (tl.sqrt(new_square) * inverse_root + EPSILON)
    if skipped is not None:
        new_momentum = tl.where(skipped, momentum, new_momentum)
        new_square = tl.where(skipped, square, new_square)
        new_weight = tl.where(skipped, weight, new_weight)

    tl.store(weight_ptr + offset, new_weight, mask=mask)
    tl.store(momentum_ptr + offset, new_momentum, mask=mask)
    tl.store(square_ptr + offset, new_square, mask=mask)
    if copy_ptr is not None:
        tl.store(copy_ptr + offset, new_weight.to(copy_ptr.dtype.element_ty), mask=mask)
    if average_ptr is not None:
        tl.store(average_ptr + offset, new_weight + average_decay * (average - new_weight), mask=mask)


@triton.jit
def _adamw_kernel(
    weights, gradients, momenta, squares, steps, copies, averages, table_ptr, rate_ptr, scale_ptr, found_inf_ptr,
    average_decay_ptr, DECAY: tl.constexpr, BETA1: tl.constexpr, BETA2: tl.constexpr, LOG1: tl.constexpr,
    LOG2: tl.constexpr, EPSILON: tl.constexpr, TERMS: tl.constexpr, TENSORS: tl.constexpr, BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    index, start, size = place(table_ptr, TENSORS, BLOCK)
    weight_ptr = pointer_at(weights, index, TENSORS)
    gradient_ptr = pointer_at(gradients, index, TENSORS)
    momentum_ptr = pointer_at(momenta, index, TENSORS)
    square_ptr = pointer_at(squares, index, TENSORS)
    copy_ptr = pointer_at(copies, index, TENSORS)
    average_ptr = pointer_at(averages, index, TENSORS)

    rate, step = tl.load(rate_ptr), tl.load(pointer_at(steps, index, TENSORS))
    step_size = tl.div_rn(rate, _one_minus_power(step, LOG1, TERMS))
    inverse_root = tl.div_rn(1.0, tl.sqrt_rn(_one_minus_power(step, LOG2, TERMS)))
    inverse_scale, skipped, average_decay = 1.0, None, None
    if scale_ptr is not None:
        inverse_scale = tl.div_rn(1.0, tl.load(scale_ptr))
    if found_inf_ptr is not None:
        skipped = tl.load(found_inf_ptr) != 0
    if averages is not None:
        average_decay = tl.load(average_decay_ptr)
    for first in range(start, tl.minimum(start + BLOCK, size), PIECE):
        # 4 numbers for a thread at a time: 16 bytes in float32, see `sgd.py`
        offset = tl.max_contiguous(first + tl.arange(0, PIECE), 4)
        if first + PIECE <= size:
            _update(weight_ptr, gradient_ptr, momentum_ptr, square_ptr, copy_ptr, average_ptr, offset, None,
                    inverse_scale, DECAY * rate, step_size, inverse_root, average_decay, skipped, BETA1, BETA2,
                    EPSILON)  # fmt: skip
        else:
            inside = offset < size
            _update(weight_ptr, gradient_ptr, momentum_ptr, square_ptr, copy_ptr, average_ptr, offset, inside,
                    inverse_scale, DECAY * rate, step_size, inverse_root, average_decay, skipped, BETA1, BETA2,
                    EPSILON)  # fmt: skip


def supports(weight, gradient, momentum, square, step, copy=None, average=None):
    """Whether the kernel can handle what belongs to one tensor of weights; if not, the definition runs.

    Args:
        weight: float32, of 1 to 2³⁰ numbers, in any order without gaps that is contiguous or channels-last.
        gradient: float32, float16 or bfloat16.
        momentum, square: float32.
        step: one number, float32.
        copy: None, or float16 or bfloat16.
        average: None, or float32.

    All but `step` have the shape and strides of `weight`, and begin at a multiple of 16 bytes.
    """
    if step.dtype not in FLOAT32 or step.numel() != 1 or step.get_device() != weight.get_device():
        return False
    given, types = (weight, gradient, momentum, square, copy, average), (FLOAT32, FLOATS, *[FLOAT32] * 2, HALF, FLOAT32)
    return belong_together(given, types)


def adamw(
    weights, gradients, momenta, squares, steps, copies, averages, rate, betas, epsilon, weight_decay, grad_scale=None,
    found_inf=None, average_decay=None,
):  # fmt: skip
    """Updates weights, momenta, squares, copies and averages in place, for tensors that `supports` accepts.

    A CUDA graph can hold it if tensors of these sizes were updated before.

    Args:
        weights: list of tensors.
        gradients: list of tensors of one type.
        momenta, squares: lists of tensors, the moving averages of gradients and of their squares.
        steps: list of tensors, the number of updates with this one.
        copies: list of tensors of one type, or None.
        averages: list of tensors, or None.
        rate: learning rate, (), float32, on the device.
        betas: the factors of momenta and squares, from 0 to below 1.
        epsilon: what is added to the square root.
        weight_decay: by how much of the learning rate the weights shrink.
        grad_scale: None, or what the gradients are divided by, (), float32, on the device.
        found_inf: None, or (), float32, on the device; unless it is zero only averages are written.
        average_decay: of the averages, (), float32, on the device; or None without averages.
    """
    log1, log2 = (math.log(max(beta, SMALLEST)) for beta in betas)
    constants = {"DECAY": weight_decay, "BETA1": betas[0], "BETA2": betas[1], "LOG1": log1, "LOG2": log2}
    constants |= {"EPSILON": epsilon, "TERMS": TERMS, "BLOCK": BLOCK, "PIECE": PIECE, "num_warps": NUM_WARPS}
    lists = weights, gradients, momenta, squares, steps, copies, averages
    numbers = rate, grad_scale, found_inf, average_decay
    launch(_adamw_kernel, lists, *numbers, **constants)
