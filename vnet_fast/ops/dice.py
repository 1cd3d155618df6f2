"""The sums over voxels that every form of the Dice loss is made of, as one operation."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from vnet_fast.ops.dice_chunks import are_chunked, gradient_by_chunks, sums_by_chunks
from vnet_fast.ops.dice_definition import (
    DiceOptions,
    dice_sums_definition,
    dice_sums_gradient_definition,
    one_hot,
)
from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.ops.eager import is_eager, is_transformed
from vnet_fast.ops.operator import Operator

__all__ = ["DiceOptions", "dice_sums", "dice_sums_definition", "dice_sums_gradient_definition", "one_hot"]
ACTIVATIONS = ("none", "sigmoid", "softmax")
# the fields of DiceOptions in the schema of an operator, in their order
OPTIONS_SCHEMA = (
    "str activation, bool labels, int first_class, bool squared, bool soft, int? ignore_index, "
    "str entropy, float? gamma, bool smoothed"
)


def dice_sums(input: Tensor, target: Tensor, options: DiceOptions = DiceOptions()) -> Tensor:  # noqa: B008
    """The sums over the voxels of each (volume, class) that every form of the Dice loss is made of.

    With p the activated input and g the target, both set to zero where the target is ignored.

    Args:
        input: (N, C, *spatial), floating point.
        target: (N, 1, *spatial) class indices of any integer, bool or whole-valued float type if
            `options.labels`; else (N, C, *spatial), numbers of any type.
        options: of the sums.

    Returns:
        (3, N, C - first_class): intersection, prediction, ground truth; float64 if the input is,
        else float32, whatever the input's precision. With an entropy, its sums follow, as in
        `vnet_fast/ops/entropy.py`: one of a softmax, two of one that is smoothed or of a sigmoid.

    Raises:
        ValueError: if the activation is none of the three, or so the entropy, or that leaves classes out.
        RuntimeError: if a label lies outside 0 … C - 1 and is not ignored (on the CPU; the kernel
            ignores it).
    """
    if options.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {options.activation!r}")
    if options.entropy not in ACTIVATIONS:
        raise ValueError(f"entropy must be one of {', '.join(ACTIVATIONS)}; got {options.entropy!r}")
    if options.entropy != "none" and options.first_class:
        raise ValueError(f"first_class must be 0 for an entropy, which counts all classes; got {options.first_class}")
    activation, labels, first_class, squared, soft, ignored, entropy, gamma, smoothed = options
    soft = soft and not squared
    # not by _replace, which torch.compile of PyTorch 2.8 can't trace
    options = DiceOptions(activation, labels, first_class, squared, soft, ignored, entropy, gamma, smoothed)
    if target.requires_grad:
        # a target that is learned: rare, and not worth a kernel
        return dice_sums_definition(input, target, options)
    kernels = kernels_for("dice", input) if is_eager(input) and is_eager(target) else None
    plan = None if kernels is None else kernels.plan_of(input, target, options)
    if plan is not None:
        # a registered operator takes most of its time on the host in Python
        apply: Callable[..., Tensor] = _DiceSums.apply
        return apply(input, target, options, kernels, plan)
    if is_transformed(input, target):
        return dice_sums_definition(input, target, options)
    sums: Tensor = torch.ops.vnet_fast.dice_sums(input, target, *options)
    return sums


def _kernels(input: Tensor, target: Tensor, options: DiceOptions) -> Any:
    return kernels_for("dice", input, input, target, options)


class _DiceSums(torch.autograd.Function):
    """The sums by the kernels, launched at once."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, options: DiceOptions, kernels: Any, plan: Any) -> Tensor:
        ctx.options, ctx.kernels, ctx.plan = options, kernels, plan
        ctx.save_for_backward(input, target)
        return cast(Tensor, kernels.dice_sums(input, target, options, plan))

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        input, target = ctx.saved_tensors
        if torch.is_grad_enabled():
            # a second derivative is wanted, which the definition has
            grad = dice_sums_gradient_definition(grad_sums, input, target, ctx.options)
        else:
            grad = ctx.kernels.dice_sums_backward(grad_sums, input, target, ctx.options, ctx.plan)
        return grad, None, None, None, None


def _dice_sums(input: Tensor, target: Tensor, *fields: Any) -> Tensor:
    options = DiceOptions(*fields)
    kernels = _kernels(input, target, options)
    if kernels is not None:
        sums: Tensor = kernels.dice_sums(input, target, options)
        return sums
    if are_chunked(input, options):
        return sums_by_chunks(input, target, options)
    return dice_sums_definition(input, target, options)


def _fake_dice_sums(input: Tensor, target: Tensor, *fields: Any) -> Tensor:
    options = DiceOptions(*fields)
    count = 3 + {"none": 0, "softmax": 1 + options.smoothed, "sigmoid": 2}[options.entropy]
    shape = (count, input.shape[0], input.shape[1] - options.first_class)
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


def _dice_sums_backward(grad_sums: Tensor, input: Tensor, target: Tensor, *fields: Any) -> Tensor:
    options = DiceOptions(*fields)
    kernels = _kernels(input, target, options)
    if kernels is not None:
        grad: Tensor = kernels.dice_sums_backward(grad_sums, input, target, options)
        return grad
    if are_chunked(input, options):
        return gradient_by_chunks(grad_sums, input, target, options)
    return dice_sums_gradient_definition(grad_sums, input, target, options)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, *fields = inputs
    ctx.options = DiceOptions(*fields)
    ctx.save_for_backward(input, target)


def _gradients(ctx: Any, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
    input, target = ctx.saved_tensors
    if torch.is_grad_enabled():
        # a second derivative is wanted, which the definition has
        grad = dice_sums_gradient_definition(grad_sums, input, target, ctx.options)
    else:
        grad = torch.ops.vnet_fast.dice_sums_backward(grad_sums, input, target, *ctx.options)
    return grad, None, *[None] * len(ctx.options)


_operator = Operator(
    "vnet_fast::dice_sums",
    _dice_sums,
    differentiable=True,
    schema=f"(Tensor input, Tensor target, {OPTIONS_SCHEMA}) -> Tensor",
)
_operator.register_fake(_fake_dice_sums)
_operator.register_autograd(_gradients, setup_context=_save_inputs)
_backward_operator = Operator(
    "vnet_fast::dice_sums_backward",
    _dice_sums_backward,
    schema=f"(Tensor grad_sums, Tensor input, Tensor target, {OPTIONS_SCHEMA}) -> Tensor",
)
_backward_operator.register_fake(lambda grad_sums, input, target, *fields: torch.empty_like(input))
