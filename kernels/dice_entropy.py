"""What the kernels of `dice` add to its sums where an entropy is wanted: cross-entropies and their focal forms.

With x the logits, g the target, p the softmax or sigmoid of x, and ℓ(x) = -log p, of a softmax:

    Σ g ℓ    or, focal, Σ g (1 - p)^γ ℓ;  smoothed also Σ ℓ, over all voxels that count

and of a sigmoid, where -log (1 - p) = ℓ(-x):

    Σ g ℓ(x) and Σ (1 - g) ℓ(-x)    or, focal, Σ g f and Σ (1 - g) f
    f = u p(-z)^γ,  u = g ℓ(x) + (1 - g) ℓ(-x),  z = (2g - 1) x

With c and s the gradients of the two sums, those of the logits are

    p_j Σ_k t_k - t_j,  t = c g h + s,  h = 1    or, focal, (1 - p)^γ + γ (1 - p)^(γ - 1) p ℓ
    s (1 - g) p(x) - c g p(-x)    or, focal, (c g + s (1 - g)) p(-z)^γ (p - g - γ (2g - 1) p(z) u)

Source: Lin et al. 2017 (focal loss), as in MONAI 1.6; the definition is in `vnet_fast/ops/entropy.py`. An infinite
ℓ with a factor of 0 is 0, so that a probability of 0 counts only where its class is the target's.

Bytes moved: none, since logits and target are in registers.
"""

import math

import triton
import triton.language as tl

# e^x is 2^(x log2 e), in which Triton flushes denormals: three instructions fewer than in its e^x
LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def classes_of(FORM: tl.constexpr):
    """The numbers of the classes of a tile."""
    return tl.expand_dims(tl.arange(0, FORM.padded), 1 - FORM.axis)


@triton.jit
def softmax_parts(x, FORM: tl.constexpr):
    """x minus its largest, the exponential of that, and its sum over the classes."""
    if FORM.classes != FORM.padded:
        x = tl.where(classes_of(FORM) < FORM.classes, x, float("-inf"))
    x = x - tl.expand_dims(tl.max(x, FORM.axis), FORM.axis)
    exponential = tl.exp2(x * LOG2_E)
    return x, exponential, tl.sum(exponential, FORM.axis)


@triton.jit
def _log1p(x):
    """log(1 + x) for x from 0 to 1, with the relative error of a float32: 2 artanh(x / (2 + x)), as a series."""
    s = x / (2 + x)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return 2 * s * series


@triton.jit
def _sigmoid_parts(x):
    """p(x), p(-x), ℓ(x) and ℓ(-x)."""
    small = tl.exp2(-tl.abs(x) * LOG2_E)
    larger = 1 / (1 + small)
    smaller = small * larger
    logarithm = _log1p(small)
    below, above = logarithm + tl.where(x < 0, -x, 0.0), logarithm + tl.where(x > 0, x, 0.0)
    return tl.where(x < 0, smaller, larger), tl.where(x < 0, larger, smaller), below, above


@triton.jit
def _times(weight, x):
    """A product that is 0 where its weight is, also of infinity; NaN stays NaN."""
    return tl.where((weight == 0) & (x == x), 0.0, weight * x)


@triton.jit
def _complement(p):
    """1 - p, not below 0: a GPU's division is approximate."""
    return tl.where(p > 1, 0.0, 1 - p)


@triton.jit
def _power(x, EXPONENT: tl.constexpr):
    if EXPONENT == 0:
        return x * 0 + 1
    elif EXPONENT == 1:
        return x
    elif EXPONENT == 2:
        return x * x
    return tl.exp2(EXPONENT * tl.log2(x))


@triton.jit
def entropies(logits, g, counted, FORM: tl.constexpr):
    """What a block adds to the two sums; the second is of use only where `FORM.sums` is 5."""
    if FORM.entropy == "softmax":
        shifted, exponential, total = softmax_parts(logits, FORM)
        loss = tl.expand_dims(tl.log(total), FORM.axis) - shifted
        second = tl.where((classes_of(FORM) < FORM.classes) & (counted != 0), loss, 0.0)
        if FORM.gamma is not None:
            loss *= _power(_complement(exponential * tl.expand_dims(1 / total, FORM.axis)), FORM.gamma)
        first = _times(g, loss)
    else:
        other = (1 - g) * counted
        _, _, below, above = _sigmoid_parts(logits)
        if FORM.gamma is None:
            first, second = _times(g, below), _times(other, above)
        else:
            loss = _times(g, below) + _times(1 - g, above)
            _, wrong, _, _ = _sigmoid_parts(logits * (2 * g - 1))
            focal = loss * _power(wrong, FORM.gamma)
            first, second = _times(g, focal), _times(other, focal)
    return first, second


@triton.jit
def entropy_gradient(c, s, logits, g, counted, FORM: tl.constexpr):
    """The gradient of a block's logits from those of the two sums."""
    if FORM.entropy == "softmax":
        shifted, exponential, total = softmax_parts(logits, FORM)
        p = exponential * tl.expand_dims(1 / total, FORM.axis)
        t = c * g
        if FORM.gamma is not None:
            wrong, loss = _complement(p), tl.expand_dims(tl.log(total), FORM.axis) - shifted
            slope = FORM.gamma * _power(wrong, FORM.gamma - 1) * _times(p, loss)
            t *= _power(wrong, FORM.gamma) + tl.where(wrong == 0, 0.0, slope)
        if FORM.sums == 5:
            t += s * counted
        grad = p * tl.expand_dims(tl.sum(t, FORM.axis), FORM.axis) - t
    else:
        other = (1 - g) * counted
        p, q, below, above = _sigmoid_parts(logits)
        if FORM.gamma is None:
            grad = s * other * p - c * g * q
        else:
            sign = 2 * g - 1
            loss = _times(g, below) + _times(1 - g, above)
            right, wrong, _, _ = _sigmoid_parts(logits * sign)
            slope = (1 - g) * p - g * q - FORM.gamma * sign * _times(right, loss)
            grad = (c * g + s * other) * _power(wrong, FORM.gamma) * slope
    return grad
