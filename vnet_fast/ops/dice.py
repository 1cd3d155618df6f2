"""The sums over voxels that every form of the Dice loss is made of, as one operation."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.ops.eager import is_eager

ACTIVATIONS = ("none", "sigmoid", "softmax")
# the fields of DiceOptions in the schema of an operator, in their order
OPTIONS_SCHEMA = "str activation, bool labels, int first_class, bool squared, bool soft, int? ignore_index"


class DiceOptions(NamedTuple):
    """The options of the sums.

    Args:
        activation: `none`, `sigmoid`, or `softmax` over the classes.
        labels: whether the target holds class indices.
        first_class: the first class that is counted; 1 leaves the background out.
        squared: sums p² and g² instead of p and g.
        soft: computes the intersection as (Σ|p| + Σ|g| - Σ|p - g|) / 2, which is right for targets between 0 and 1.
            It has no effect if `squared`.
        ignore_index: None, or the label whose voxels do not count. For a target with a channel for
            each class, a number that is no class ignores the voxels where no channel is set.
    """

    activation: str = "none"
    labels: bool = False
    first_class: int = 0
    squared: bool = False
    soft: bool = False
    ignore_index: int | None = None


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
        else float32, whatever the input's precision.

    Raises:
        ValueError: if the activation is none of the three.
        RuntimeError: if a label lies outside 0 … C - 1 and is not ignored (on the CPU; the kernel
            ignores it).
    """
    if options.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {options.activation!r}")
    activation, labels, first_class, squared, soft, ignore_index = options
    # not by _replace, which torch.compile of PyTorch 2.8 can't trace
    options = DiceOptions(activation, labels, first_class, squared, soft and not squared, ignore_index)
    if target.requires_grad:
        # a target that is learned: rare, and not worth a kernel
        return dice_sums_definition(input, target, options)
    kernels = kernels_for("dice", input) if is_eager(input) and is_eager(target) else None
    plan = None if kernels is None else kernels.plan_of(input, target, options)
    if plan is not None:
        # a registered operator takes most of its time on the host in Python
        apply: Callable[..., Tensor] = _DiceSums.apply
        return apply(input, target, options, kernels, plan)
    sums: Tensor = torch.ops.vnet_fast.dice_sums(input, target, *options)
    return sums


def dice_sums_definition(input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """`dice_sums` in plain PyTorch. The kernel is tested against it, and it runs where the kernel can't."""
    _, p, g, _ = _masked(input, target, options)
    voxels = tuple(range(2, input.ndim))
    if options.soft:
        prediction, ground = p.abs().sum(voxels), g.abs().sum(voxels)
        intersection = (prediction + ground - (p - g).abs().sum(voxels)) / 2
    else:
        intersection = (p * g).sum(voxels)
        if options.squared:
            p, g = p.square(), g.square()
        prediction, ground = p.sum(voxels), g.sum(voxels)
    return torch.stack([intersection, prediction, ground])


def dice_sums_gradient_definition(grad_sums: Tensor, input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """The gradient of `input` in plain PyTorch, in its type and layout."""
    probability, p, g, counted = _masked(input, target, options)
    a, b = grad_sums[:2].reshape(2, *grad_sums.shape[1:], *[1] * (input.ndim - 2))
    if options.squared:
        grad = a * g + 2 * b * p
    elif options.soft:
        grad = (b + a / 2) * p.sign() - a / 2 * (p - g).sign()
    else:
        grad = a * g + b
    if counted is not None:
        grad = grad * counted
    if options.first_class:
        grad = torch.cat([torch.zeros_like(probability[:, : options.first_class]), grad.expand_as(p)], 1)
    if options.activation == "softmax":
        grad = probability * (grad - (probability * grad).sum(1, keepdim=True))
    elif options.activation == "sigmoid":
        grad = probability * (1 - probability) * grad
    return torch.empty_like(input).copy_(grad)


def _masked(input: Tensor, target: Tensor, options: DiceOptions) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """p of all classes; p and g of the classes that count, zero where ignored; ones where voxels count."""
    probability = input.to(torch.promote_types(input.dtype, torch.float32))
    if options.activation == "softmax":
        probability = torch.softmax(probability, 1)
    elif options.activation == "sigmoid":
        probability = torch.sigmoid(probability)
    ignored, first_class = options.ignore_index, options.first_class
    counted = None if ignored is None else _counted(target, ignored, probability.dtype)
    if options.labels:
        target = _one_hot(target, input.shape[1], ignored, probability.dtype)
    p, g = probability[:, first_class:], target[:, first_class:].to(probability.dtype)
    if counted is not None:
        p, g = p * counted, g * counted
    return probability, p, g, counted


def _counted(target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """(N, 1, *spatial): 1 where a voxel counts, 0 where it is ignored."""
    num_channels = target.shape[1]
    if num_channels == 1:
        return (target != ignore_index).to(dtype)
    if 0 <= ignore_index < num_channels:
        return 1 - target[:, ignore_index : ignore_index + 1].to(dtype)
    return (target.sum(1, keepdim=True) > 0).to(dtype)


def _one_hot(labels: Tensor, num_classes: int, ignore_index: int | None, dtype: torch.dtype) -> Tensor:
    index = labels.long()
    if ignore_index is not None and not 0 <= ignore_index < num_classes:
        index = index.masked_fill(labels == ignore_index, 0)
    shape = (labels.shape[0], num_classes, *labels.shape[2:])
    return torch.zeros(shape, dtype=dtype, device=labels.device).scatter_(1, index, 1)


def _kernels(input: Tensor, target: Tensor, options: DiceOptions) -> Any:
    kernels = kernels_for("dice", input)
    return kernels if kernels is not None and kernels.supports(input, target, options) else None


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
    return dice_sums_definition(input, target, options)


def _fake_dice_sums(input: Tensor, target: Tensor, *fields: Any) -> Tensor:
    shape = (3, input.shape[0], input.shape[1] - DiceOptions(*fields).first_class)
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


def _dice_sums_backward(grad_sums: Tensor, input: Tensor, target: Tensor, *fields: Any) -> Tensor:
    options = DiceOptions(*fields)
    kernels = _kernels(input, target, options)
    if kernels is not None:
        grad: Tensor = kernels.dice_sums_backward(grad_sums, input, target, options)
        return grad
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


_operator = torch.library.custom_op(
    "vnet_fast::dice_sums",
    _dice_sums,
    mutates_args=(),
    schema=f"(Tensor input, Tensor target, {OPTIONS_SCHEMA}) -> Tensor",
)
_operator.register_fake(_fake_dice_sums)
_operator.register_autograd(_gradients, setup_context=_save_inputs)
_backward_operator = torch.library.custom_op(
    "vnet_fast::dice_sums_backward",
    _dice_sums_backward,
    mutates_args=(),
    schema=f"(Tensor grad_sums, Tensor input, Tensor target, {OPTIONS_SCHEMA}) -> Tensor",
)
_backward_operator.register_fake(lambda grad_sums, input, target, *fields: torch.empty_like(input))
