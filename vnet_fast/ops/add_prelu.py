"""The operations that are worth a kernel: operators of `torch.library`, run by their Triton kernels on
CUDA devices and by their definitions in plain PyTorch elsewhere.
"""

import functools
import importlib

import torch
from torch import Tensor

from vnet_fast.ops import definitions
from vnet_fast.training import draws as augmentation

ACTIVATIONS = ("none", "sigmoid", "softmax")


@functools.cache
def _module(name):
    """The kernels of an operation, or None where Triton is not installed."""
    try:
        return importlib.import_module(f"vnet_fast.kernels.{name}")
    except ImportError:
        return None


def _runs_kernels(tensor):
    return tensor.is_cuda


def kernels_for(name, tensor):
    """The kernels of an operation if they can run where `tensor` is, else None."""
    return _module(name) if _runs_kernels(tensor) else None


# PReLU of a sum


def add_prelu(x, slope, bias=None, residual=None):
    """PReLU of x + bias + residual.

    Args:
        x: (N, C, D, H, W), floating point.
        slope: (C,), the factor for negative values of each channel.
        bias: None or (C,).
        residual: None, (N, C, D, H, W), or (N, 1, D, H, W) for every channel.

    Returns:
        (N, C, D, H, W), the type and layout of `x`.

    Source:
        He et al. 2015 (PReLU); the residual of a V-Net stage is added before the activation.
    """
    if residual is not None and residual.shape[1] == x.shape[1]:
        residual = residual.to(x.dtype)
    return torch.ops.vnet_fast.add_prelu(x, slope, bias, residual)[0]


def add_prelu_join(x, slope, bias, skip):
    """PReLU of x + bias, and `skip` behind it along the channels.

    The activation is written straight into its half of the result. The skip is copied: the down
    convolution, its other reader, needs it dense.

    Args:
        x: (N, C, D, H, W), floating point.
        slope: (C,).
        bias: None or (C,).
        skip: (N, C', D, H, W).

    Returns:
        (N, C + C', D, H, W), the type and layout of `x`.
    """
    return torch.ops.vnet_fast.add_prelu_join(x, slope, bias, skip.to(x.dtype))[0]


def _add_prelu_kernels(x, slope, bias, residual):
    kernels = kernels_for("add_prelu", x)
    return kernels if kernels is not None and kernels.supports(x, slope, bias, residual) else None


@torch.library.custom_op("vnet_fast::add_prelu", mutates_args=())
def _add_prelu(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """y, and what the kernel keeps for the backward pass: empty where the definition runs."""
    kernels = _add_prelu_kernels(x, slope, bias, residual)
    if kernels is not None:
        return kernels.add_prelu(x, slope, bias, residual)
    return definitions.add_prelu(x, slope, bias, residual), x.new_empty((0,), dtype=torch.uint8)


@_add_prelu.register_fake
def _(x, slope, bias, residual):
    kernels = _add_prelu_kernels(x, slope, bias, residual)
    return torch.empty_like(x), x.new_empty((0,), dtype=torch.uint8) if kernels is None else kernels.new_negative(x)


@torch.library.custom_op("vnet_fast::add_prelu_join", mutates_args=())
def _add_prelu_join(x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor]:
    joined = _new_joined(x, skip)
    y = joined[:, : x.shape[1]]
    kernels = _add_prelu_kernels(x, slope, bias, None)
    if kernels is not None:
        negative = kernels.add_prelu(x, slope, bias, out=y)[1]
    else:
        y.copy_(definitions.add_prelu(x, slope, bias, None))
        negative = x.new_empty((0,), dtype=torch.uint8)
    joined[:, x.shape[1] :] = skip
    return joined, negative


@_add_prelu_join.register_fake
def _(x, slope, bias, skip):
    kernels = _add_prelu_kernels(x, slope, bias, None)
    negative = x.new_empty((0,), dtype=torch.uint8) if kernels is None else kernels.new_negative(x)
    return _new_joined(x, skip), negative


def _new_joined(x, skip):
    shape = (x.shape[0], x.shape[1] + skip.shape[1], *x.shape[2:])
    last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    channels_last = x.is_contiguous(memory_format=last)
    return torch.empty(
        shape, dtype=x.dtype, device=x.device, memory_format=last if channels_last else torch.contiguous_format
    )


@torch.library.custom_op("vnet_fast::add_prelu_backward", mutates_args=())
def _add_prelu_backward(grad_y: Tensor, y: Tensor, negative: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _module("add_prelu").add_prelu_backward(grad_y, y, negative, slope)


@_add_prelu_backward.register_fake
def _(grad_y, y, negative, slope):
    last = torch.channels_last_3d if y.ndim == 5 else torch.channels_last
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=last)
    return grad_x, *(torch.empty(y.shape[1], dtype=torch.float32, device=y.device) for _ in range(2))


def _save_add_prelu(ctx, inputs, output):
    x, slope, bias, residual = inputs
    y, negative = output
    ctx.mark_non_differentiable(negative)
    _save(ctx, x, slope, bias, residual, y, negative)


def _save_add_prelu_join(ctx, inputs, output):
    x, slope, bias, _ = inputs
    joined, negative = output
    ctx.mark_non_differentiable(negative)
    ctx.channels = x.shape[1]
    _save(ctx, x, slope, bias, None, joined, negative)


def _save(ctx, x, slope, bias, residual, y, negative):
    ctx.types = [None if tensor is None else tensor.dtype for tensor in (slope, bias, residual)]
    ctx.one_channel = residual is not None and residual.shape[1] != x.shape[1]
    ctx.by_kernel = negative.shape[0] > 0
    # the kernel needs neither x nor the residual again, the definition not y
    if ctx.by_kernel:
        ctx.save_for_backward(slope, y, negative)
    else:
        ctx.save_for_backward(slope, x, bias, residual)


def _add_prelu_gradients(ctx, grad_y):
    """Of x, slope, bias and residual; None where one is not there."""
    if ctx.by_kernel:
        slope, y, negative = ctx.saved_tensors
        y = y[:, : grad_y.shape[1]]
        grad_x, grad_slope, grad_bias = torch.ops.vnet_fast.add_prelu_backward(grad_y, y, negative, slope)
    else:
        slope, x, bias, residual = ctx.saved_tensors
        grad_x, grad_slope, grad_bias = definitions.add_prelu_gradients(grad_y, x, slope, bias, residual)
    slope_type, bias_type, residual_type = ctx.types
    grad_residual = None
    if residual_type is not None and ctx.needs_input_grad[3]:
        grad_residual = grad_x.sum(1, keepdim=True) if ctx.one_channel else grad_x
        grad_residual = grad_residual.to(residual_type)
    return grad_x, grad_slope.to(slope_type), None if bias_type is None else grad_bias.to(bias_type), grad_residual


def _add_prelu_join_gradients(ctx, grad_joined, _):
    grads = _add_prelu_gradients(ctx, grad_joined[:, : ctx.channels])
    return *grads[:3], grad_joined[:, ctx.channels :]


_add_prelu.register_autograd(lambda ctx, grad_y, _: _add_prelu_gradients(ctx, grad_y), setup_context=_save_add_prelu)
_add_prelu_join.register_autograd(_add_prelu_join_gradients, setup_context=_save_add_prelu_join)


# Sums of the Dice loss


def dice_sums(
    input, target, *, activation="none", labels=False, first_class=0, squared=False, soft=False, ignore_index=None
):
    """The sums over the voxels of each (volume, class) that every form of the Dice loss is made of.

    With p the activated input and g the target, both set to zero where the target is ignored.

    Args:
        input: (N, C, *spatial), floating point.
        target: (N, 1, *spatial) class indices of any integer, bool or whole-valued float type if
            `labels`; else (N, C, *spatial), numbers of any type.
        activation: `none`, `sigmoid`, or `softmax` over the classes.
        labels: whether `target` holds class indices.
        first_class: the first class that is counted; 1 leaves the background out.
        squared: sums p² and g² rather than p and g.
        soft: takes the intersection as (Σ|p| + Σ|g| - Σ|p - g|) / 2, which is right for targets
            between 0 and 1; no different from Σpg if `squared`.
        ignore_index: None, or the label whose voxels do not count. For a target with a channel for
            each class, a number that is no class ignores the voxels where no channel is set.

    Returns:
        (3, N, C - first_class): intersection, prediction, ground truth; float64 if the input is,
        else float32, whatever the input's precision.

    Raises:
        ValueError: if `activation` is none of the three.
        RuntimeError: if a label lies outside 0 … C - 1 and is not ignored (on the CPU; the kernel
            takes it for no class).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    options = (activation, bool(labels), int(first_class), bool(squared), bool(soft and not squared), ignore_index)
    if target.requires_grad:
        # a target that is learnt itself: rare, and not worth a kernel
        return definitions.dice_sums(input, target, *options)
    return torch.ops.vnet_fast.dice_sums(input, target, *options)


def _dice_kernels(input, target, *options):
    kernels = kernels_for("dice", input)
    return kernels if kernels is not None and kernels.supports(input, target, **_named(*options)) else None


def _named(activation, labels, first_class, squared, soft, ignore_index):
    return {
        "activation": activation,
        "labels": labels,
        "first_class": first_class,
        "squared": squared,
        "soft": soft,
        "ignore_index": ignore_index,
    }


@torch.library.custom_op("vnet_fast::dice_sums", mutates_args=())
def _dice_sums(
    input: Tensor,
    target: Tensor,
    activation: str,
    labels: bool,
    first_class: int,
    squared: bool,
    soft: bool,
    ignore_index: int | None,
) -> Tensor:
    options = (activation, labels, first_class, squared, soft, ignore_index)
    kernels = _dice_kernels(input, target, *options)
    if kernels is not None:
        return kernels.dice_sums(input, target, **_named(*options))
    return definitions.dice_sums(input, target, *options)


@_dice_sums.register_fake
def _(input, target, activation, labels, first_class, squared, soft, ignore_index):
    shape = (3, input.shape[0], input.shape[1] - first_class)
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


@torch.library.custom_op("vnet_fast::dice_sums_backward", mutates_args=())
def _dice_sums_backward(
    grad_sums: Tensor,
    input: Tensor,
    target: Tensor,
    activation: str,
    labels: bool,
    first_class: int,
    squared: bool,
    soft: bool,
    ignore_index: int | None,
) -> Tensor:
    options = (activation, labels, first_class, squared, soft, ignore_index)
    kernels = _dice_kernels(input, target, *options)
    if kernels is not None:
        return kernels.dice_sums_backward(grad_sums, input, target, **_named(*options))
    return definitions.dice_sums_gradient(grad_sums, input, target, *options)


@_dice_sums_backward.register_fake
def _(grad_sums, input, target, activation, labels, first_class, squared, soft, ignore_index):
    return torch.empty_like(input)


def _save_dice_sums(ctx, inputs, output):
    input, target, *ctx.options = inputs
    ctx.save_for_backward(input, target)


def _dice_sums_gradients(ctx, grad_sums):
    input, target = ctx.saved_tensors
    if torch.is_grad_enabled():
        # a gradient of the gradient is wanted: the definition has one
        return definitions.dice_sums_gradient(grad_sums, input, target, *ctx.options), *[None] * (1 + len(ctx.options))
    grad = torch.ops.vnet_fast.dice_sums_backward(grad_sums, input, target, *ctx.options)
    return grad, None, *[None] * len(ctx.options)


_dice_sums.register_autograd(_dice_sums_gradients, setup_context=_save_dice_sums)


# Augmentation


def augment(ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype=torch.float32):
    """A training batch of N volumes from M stored ones, deformed and with other intensities.

    Nothing is read on the host where the kernel runs, so that a CUDA graph can hold it. There, what is
    not deformed costs only the look-up.

    Args:
        ranks: (M, D, H, W) int16 with the bits of uint16, see `intensity.to_ranks`.
        tables: (M', 65536) float32, of the distributions of intensity.
        masks: (M, D, H, W) uint8 labels below `num_classes`.
        cases: (N,) int64, which volumes and masks.
        intensities_of: (N,) int64, which tables.
        deformed: (N,) bool.
        control_points: (N, 2, 5, 5, 5) float32, see `augment.Draw`.
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, 1, D, H, W) in `dtype`, mask (N, 1, D, H, W) uint8.
    """
    return torch.ops.vnet_fast.augment(
        ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype
    )


def augments_by_kernel(device):
    """Whether `augment` runs its kernel on a device; else it waits for the device."""
    return device.type == "cuda" and _module("augment") is not None


@torch.library.custom_op("vnet_fast::augment", mutates_args=())
def _augment(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    kernels = kernels_for("augment", ranks)
    stored = ranks, tables, masks, cases, intensities_of, deformed, control_points
    if kernels is not None and kernels.supports(*stored, dtype):
        return kernels.augment(*stored, dtype)
    image, mask = augmentation.augment(
        # widened in use: torch indexes with signed types only
        ranks[cases].to(torch.int32) & 0xFFFF,
        tables[intensities_of],
        masks[cases],
        control_points,
        deformed.cpu().numpy(),
        num_classes,
    )
    return image.to(dtype), mask


@_augment.register_fake
def _(ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype):
    shape = (cases.shape[0], 1, *ranks.shape[1:])
    return ranks.new_empty(shape, dtype=dtype), masks.new_empty(shape)
