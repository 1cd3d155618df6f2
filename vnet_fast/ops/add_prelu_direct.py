"""`add_prelu` and `add_prelu_join` as autograd functions that launch the kernels at once.

Registered operators take most of their time on the host in Python: 50 µs and more for each call. These functions do the
same for eager tensors. Besides, in a training pass they return an activation with spare aliases. Later operations take
one for each further use, and so the gradients of all uses reach the backward kernel, which adds them. PyTorch would
add them before, in passes over the memory of their own.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from vnet_fast.ops.training_pass import current_pass


def add_prelu_directly(
    kernels: Any, plan: Any, x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    """`add_prelu` by the kernels.

    Args:
        kernels: their module.
        plan: of the tensors.
        x, slope, bias, residual: as for `add_prelu`.
    """
    if not torch.is_grad_enabled():
        return cast(Tensor, kernels.add_prelu(x, slope, bias, residual, plan=plan)[0])
    if residual is not None:
        residual = (_take_spares(residual, 1) or [residual])[0]
    apply: Callable[..., Tensor | tuple[Tensor, ...]] = _AddPReLU.apply
    return _with_spares(apply(x, slope, bias, residual, kernels, plan))


def add_prelu_join_directly(kernels: Any, x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> Tensor:
    """`add_prelu_join` by the kernels.

    Args:
        kernels: their module.
        x, slope, bias, skip: as for `add_prelu_join`.
    """
    # each gradient of the result has a part for the skip
    skips = _take_spares(skip, kernels.MAX_GRADIENTS) or [skip]
    apply: Callable[..., Tensor | tuple[Tensor, ...]] = _AddPReLUJoin.apply
    return _with_spares(apply(x, slope, bias, *skips, kernels))


def _with_spares(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    y, *spares = outputs
    y._vnet_fast_spares = spares  # type: ignore[attr-defined]  # where later operations find them
    return y


def _take_spares(tensor: Tensor, count: int) -> list[Tensor]:
    """Up to `count` spare aliases of a tensor, each of which is taken once."""
    spares: list[Tensor] = getattr(tensor, "_vnet_fast_spares", [])
    taken = spares[:count]
    del spares[:count]
    return taken


class _AddPReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        slope: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        kernels: Any,
        plan: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        y, negative = kernels.add_prelu(x, slope, bias, residual, plan=plan)
        ctx.residual = None if residual is None else (residual.dtype, residual.shape[1] != x.shape[1])
        return _saved(ctx, kernels, plan, slope, bias, y, negative)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [grad for grad in grads if grad is not None]
        if not there:
            return (None,) * 6
        grad_x, grad_slope, grad_bias = _gradients(ctx, there)
        grad_residual: Tensor | None = None
        if ctx.residual is not None and ctx.needs_input_grad[3]:
            dtype, has_one_channel = ctx.residual
            grad_residual = grad_x.sum(1, keepdim=True).to(dtype) if has_one_channel else grad_x
        return (grad_x, grad_slope, grad_bias, grad_residual, None, None)


class _AddPReLUJoin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, slope: Tensor, bias: Tensor | None, *skips_and_kernels: Any
    ) -> Tensor | tuple[Tensor, ...]:
        skip, *_, kernels = skips_and_kernels
        joined, negative, plan = join_by_kernels(kernels, x, slope, bias, skip)
        return _saved(ctx, kernels, plan, slope, bias, joined, negative)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [grad for grad in grads if grad is not None]
        if not there:
            return tuple([None] * len(ctx.needs_input_grad))
        channels = ctx.channels
        gradients = _gradients(ctx, [grad[:, :channels] for grad in there])
        skips = [grad[:, channels:] for grad in there]
        num_skips = len(ctx.needs_input_grad) - 4
        while len(skips) > num_skips:
            last = skips.pop()
            skips[-1] = skips[-1] + last
        of_inputs: list[Tensor | None] = [*gradients, *skips, *[None] * (num_skips - len(skips)), None]
        return tuple(of_inputs)


def join_by_kernels(
    kernels: Any, x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor
) -> tuple[Tensor, Tensor, Any]:
    """The joined tensor, the bits of its first half, and the plan of the launch."""
    channels = x.shape[1]
    joined = new_joined(x, skip)
    y = joined[:, :channels]
    plan = kernels.forward_plan(x, slope, bias, None, y)
    negative = kernels.add_prelu(x, slope, bias, out=y, plan=plan)[1]
    joined[:, channels:].copy_(skip)
    return joined, negative, plan


def new_joined(x: Tensor, skip: Tensor) -> Tensor:
    """Memory for `x` and `skip`, concatenated along the channels, in the layout of `x`."""
    shape = (x.shape[0], x.shape[1] + skip.shape[1], *x.shape[2:])
    last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    layout = last if x.is_contiguous(memory_format=last) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _saved(
    ctx: Any, kernels: Any, plan: Any, slope: Tensor, bias: Tensor | None, y: Tensor, negative: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Saves what the backward pass needs; returns y, in a training pass with aliases."""
    current = current_pass()
    ctx.kernels, ctx.current = kernels, current
    ctx.layer = None if current is None else current.add(kernels, slope, bias, plan.partials)
    ctx.types = slope.dtype, None if bias is None else bias.dtype
    # saved tensors can be looked at only once where checkpointing computes them again
    ctx.channels = len(slope)
    ctx.set_materialize_grads(False)
    # neither x nor the residual is needed again
    ctx.save_for_backward(slope, y, negative)
    return y if current is None else (y, *[y.detach() for _ in range(1, kernels.MAX_GRADIENTS)])


def _gradients(ctx: Any, grads: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, slope and bias; None for those that the end of the training pass computes."""
    slope, y, negative = ctx.saved_tensors
    channels = len(slope)
    if y.shape[1] > channels:
        y = y[:, :channels]
    if torch.is_grad_enabled():
        # a graph of the backward pass is made: the operator says that it has no second derivative
        grad_x, *sums = torch.ops.vnet_fast.add_prelu_backward(sum(grads), y, negative, slope)
    else:
        partials = None if ctx.layer is None else ctx.current.partials_of(ctx.layer)
        if partials is not None:
            return ctx.kernels.add_prelu_backward_partials(grads, y, negative, slope, partials), None, None
        grad_x, *sums = ctx.kernels.add_prelu_backward(grads, y, negative, slope)
    slope_type, bias_type = ctx.types
    return grad_x, sums[0].to(slope_type), None if bias_type is None else sums[1].to(bias_type)
