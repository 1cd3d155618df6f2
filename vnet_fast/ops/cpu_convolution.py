"""Convolutions 5x5x5 and 3x3x3 on a CPU: by minimal filtering or by oneDNN, whichever is faster for a layer."""

import logging
import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vnet_fast.devices import constant_when_compiled
from vnet_fast.kernels import cpu_convolution as kernels
from vnet_fast.kernels import cpu_direct
from vnet_fast.ops import cpu_convolution_choice as choice
from vnet_fast.ops import dispatch, onednn
from vnet_fast.ops.convolution_choice import Layer
from vnet_fast.ops.cpu_library import library
from vnet_fast.ops.eager import is_transformed
from vnet_fast.ops.operator import operator
from vnet_fast.ops.prelu import prelu

_FORMAT = torch.channels_last_3d
# of a volume's largest value to its mean, both absolute, by the taps along an axis; the error near it is 2e-7 times
# that with 5 taps and 6e-7 times with 3, less than bfloat16's
MAX_RATIO = {3: 1600.0, 5: 5000.0}
LOG = logging.getLogger("vnet_fast")
_has_said = False
# transformed weights of prediction: ((fingerprint, shape, form), tensor) by weight
_kept: Any = WeakIdKeyDictionary()
_memory = threading.local()


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the operators below are for a convolution: 5x5x5 or 3x3x3 on a CPU, of channels in multiples of 8 or few.

    Args:
        x: (N, C, D, H, W), float32 or bfloat16.
        weight: (K, C, t, t, t), t of 3 and 5, float32.
    """
    return kernels.supports(x, weight) and sees_operators(x, weight) and are_there()


def sees_operators(x: Tensor, *others: Tensor) -> bool:
    """Whether what is done with tensors may be an operator of CPUs: not where Triton's kernels run, where a graph is
    exported, which has to run without this package, nor under a transformation that operators have no rules for.
    """
    if dispatch.can_run_kernels(x):
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()
    return not is_transformed(x, *others) and torch._C._get_tracing_state() is None


@constant_when_compiled
def are_there() -> bool:
    """Whether the CPU's kernels can run, and are wanted."""
    return choice.kernels_run()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1 that keeps the shape.

    Args:
        x: (N, C, D, H, W) that `takes` accepts.
        weight: (K, C, t, t, t), t of 3 and 5, float32.
        bias: None or (K,).

    Returns:
        (N, K, D, H, W), channels-last, the type of `x`.
    """
    y: Tensor = torch.ops.vnet_fast.cpu_convolution(x, weight, bias)
    return y


def predict(
    x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """A convolution, and with a slope its `add_prelu`, in one pass without gradient.

    The transformed weight is kept as long as the weight is there and unchanged.

    Args:
        x, weight, bias: as for `convolve`.
        slope: None or (K,).
        residual: None, (N, K, D, H, W), or (N, 1, D, H, W) for every channel.

    Returns:
        as `convolve`.
    """
    y: Tensor = torch.ops.vnet_fast.cpu_convolution_predict(x, weight, bias, slope, residual)
    return y


@operator("vnet_fast::cpu_convolution", differentiable=True, device_types="cpu")
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # no layer's weight is transformed twice in a training step, so that keeping them is of no use
    forget(weight)
    x, weight = _laid_out(x, weight)
    ratios = [0.0]

    def run(depth: int) -> Tensor:
        if not depth:
            return onednn.convolve(x, weight, bias)
        if depth == choice.SUMS:
            return _directly(x, weight, _wide(bias))
        transformed = _transformed(weight, depth, False)
        y, ratios[0] = _by_kernels(x, transformed, len(weight), weight.shape[2], depth, _wide(bias))
        return y

    y = choice.compute(Layer.of("forward", x, weight), run)
    return run(0) if _is_too_large(ratios[0], weight) else y


@operator("vnet_fast::cpu_convolution_predict", device_types="cpu")
def _predict(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None, residual: Tensor | None) -> Tensor:
    given = weight
    x, weight = _laid_out(x, weight)
    residual = None if residual is None else residual.to(x.dtype).contiguous(memory_format=_FORMAT)
    ratios = [0.0]

    def run(depth: int) -> Tensor:
        if not depth:
            y = onednn.convolve(x, weight, bias)
            y = y if residual is None else y.add_(residual)
            return y if slope is None else prelu(y, slope.to(y.dtype))
        operands = _wide(bias), residual, _wide(slope)
        if depth == choice.SUMS:
            return _directly(x, weight, *operands)
        transformed = _kept_transform(given, weight, depth)
        y, ratios[0] = _by_kernels(x, transformed, len(weight), weight.shape[2], depth, *operands)
        return y

    y = choice.compute(Layer.of("prediction", x, weight), run)
    return run(0) if _is_too_large(ratios[0], weight) else y


@operator("vnet_fast::cpu_convolution_backward", device_types="cpu")
def _backward(grad_y: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight; empty ones that are not asked for."""
    x, weight = _laid_out(x, weight)
    grad_y = grad_y.to(x.dtype).contiguous(memory_format=_FORMAT)

    few, taps = kernels.has_few_channels(weight), weight.shape[2]

    def gradient_of_x(depth: int) -> Tensor:
        if not depth:
            return onednn.grad_input(grad_y, x, weight)
        if depth == choice.SUMS:
            return _directly(grad_y, weight, mirrored=True)
        transformed = _transformed(weight, depth, True)
        return _by_kernels(grad_y, transformed, x.shape[1], taps, depth)[0]

    def gradient_of_weight(depth: int) -> Tensor:
        if not depth:
            return onednn.grad_weight(grad_y, x, weight)
        if depth == choice.SUMS:
            sums = kernels.first_layer_gradient if few else cpu_direct.weight_gradient
            direct: Tensor = sums(library(), x, grad_y, taps)
            return direct
        grad_weight: Tensor = kernels.weight_gradient(library(), x, grad_y, taps, depth)
        return grad_weight

    grad_x, grad_weight = x.new_empty((0,)), weight.new_empty((0,))
    if of_x:
        grad_x = gradient_of_x(0) if few else choice.compute(Layer.of("grad_input", x, weight), gradient_of_x)
    if of_weight:
        grad_weight = choice.compute(Layer.of("grad_weight", x, weight), gradient_of_weight)
    return grad_x, grad_weight


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _new_output(x, weight)


@_predict.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, slope: Tensor | None, residual: Tensor | None) -> Tensor:
    return _new_output(x, weight)


@_backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=_FORMAT) if of_x else x.new_empty((0,))
    return grad_x, torch.empty_like(weight, memory_format=_FORMAT) if of_weight else weight.new_empty((0,))


def _new_output(x: Tensor, weight: Tensor) -> Tensor:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_FORMAT)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_type = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    grad_x, grad_weight = torch.ops.vnet_fast.cpu_convolution_backward(grad_y, x, weight, of_x, of_weight)
    grad_bias = grad_y.sum((0, 2, 3, 4), dtype=torch.float32).to(ctx.bias_type) if of_bias else None
    return grad_x if of_x else None, grad_weight if of_weight else None, grad_bias


_convolution.register_autograd(_gradients, setup_context=_save)


def _laid_out(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.contiguous(memory_format=_FORMAT), weight.contiguous(memory_format=_FORMAT)


def _wide(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.float().contiguous()


def _by_kernels(*arguments: Any) -> tuple[Tensor, float]:
    y, ratio = kernels.convolve(library(), *arguments)
    return y, ratio


def _directly(x: Tensor, weight: Tensor, *operands: Tensor | None, mirrored: bool = False) -> Tensor:
    """Direct sums of few channels, or of a small volume; mirrored, the gradient of the input."""
    if kernels.has_few_channels(weight):
        y: Tensor = kernels.first_layer(library(), x, weight, *operands)
    else:
        y = cpu_direct.convolve(library(), x, weight, *operands, mirrored=mirrored)
    return y


def _is_too_large(ratio: float, weight: Tensor) -> bool:
    """Whether a single value of a volume makes the kernels inaccurate for those around it; says so once."""
    if ratio <= MAX_RATIO[weight.shape[2]]:
        return False
    global _has_said
    if not _has_said:
        LOG.warning(
            "a value is %.0f times as large as a volume's mean absolute value, so oneDNN runs instead of the CPU's "
            "kernels, which would be inaccurate near it. Clip the volume's intensities",
            ratio,
        )
    _has_said = True
    return True


def _transformed(weight: Tensor, depth: int, mirrored: bool) -> Tensor:
    """A transformed weight in memory that the next one overwrites."""
    size = kernels.weight_size(weight.shape[1], len(weight), weight.shape[2], depth)
    memory = getattr(_memory, "tensor", None)
    if memory is None or len(memory) < size:
        memory = _memory.tensor = torch.empty(size, dtype=torch.float32)
    transformed: Tensor = kernels.transform_weight(library(), weight, depth, mirrored, memory)
    return transformed


def _kept_transform(given: Tensor, weight: Tensor, depth: int) -> Tensor:
    """A transformed weight that is kept as long as the weight is there and has the same values.

    PyTorch counts no changes by `.data`, by fused optimisers or by other processes. To look at the values takes a few
    hundredths of the time of the convolution. What is no parameter, such as a weight that a norm is folded into, is
    another tensor at every pass.
    """
    if not isinstance(given, torch.nn.Parameter):
        return _transformed(weight, depth, False)
    state = kernels.fingerprint(library(), weight), tuple(weight.shape), depth
    kept: tuple[Any, Tensor] | None = _kept.get(given)
    if kept is None or kept[0] != state:
        kept = _kept[given] = state, kernels.transform_weight(library(), weight, depth)
    return kept[1]


def forget(weight: Tensor) -> None:
    """Drops what is kept for a weight."""
    _kept.pop(weight, None)
