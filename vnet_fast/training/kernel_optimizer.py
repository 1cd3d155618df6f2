"""What optimisers share whose update one kernel can make, with copies of weights in half precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.training.half_weights import HalfWeights, with_copies
from vnet_fast.training.weight_average import WeightAverage


class KernelOptimizer(torch.optim.Optimizer):
    """An optimiser of PyTorch that can keep half-precision weights: then one kernel updates both, from gradients as
    they come.

    State and settings are PyTorch's, and so is the update where no kernel makes it. A subclass also derives from a
    class of PyTorch, which it names behind this one.
    """

    # PyTorch's, but for a guard that imports its compiler at the first call, which takes seconds
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    _clear = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    # the operation of the kernel
    operation: str
    # whether the kernel also makes updates without half-precision weights
    without_copies = False

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._reset()

    def _reset(self) -> None:
        self.half_weights: HalfWeights | None = None
        # whether the next update is the kernel's
        self.by_kernel = False
        # what the next update divides gradients by, a tensor (), or None
        self.excess: Tensor | None = None
        # of the weights, for a kernel that moves it too
        self.average: WeightAverage | None = None
        self.scaled = ScaledGradients(self)

    def keep_half_weights(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """Keeps the weights of a model in half precision from now on, where this saves time; otherwise stops it.

        It does where the kernels run. A network within another module keeps none: DistributedDataParallel waits for
        gradients of the network's own weights, and puts them anywhere.

        Args:
            model: that the optimiser trains.
            dtype: of mixed precision, or None.
        """
        kept = self.half_weights
        # a weight may be frozen, or given a hook, between two steps
        if kept is not None and isinstance(model, VNet) and kept.convolutions != with_copies(model):
            kept = None
        runs = isinstance(model, VNet) and kernels_for(self.operation, next(model.parameters())) is not None
        if dtype is None or not isinstance(model, VNet) or not runs:
            self.half_weights = None
        elif kept is None or (kept.model, kept.dtype) != (model, dtype):
            self.half_weights = HalfWeights(model, dtype)
        self.by_kernel = self.half_weights is not None or (runs and self.without_copies)

    def drop_half_weights(self) -> None:
        """Frees them; the update is PyTorch's until `keep_half_weights`."""
        self.half_weights, self.by_kernel = None, False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of weights and half-precision weights."""
        self._clear(set_to_none)
        for copy in self._copies().values():
            copy.grad = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # PyTorch restores only its own attributes in a copy
        super().__setstate__(state)
        self._reset()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates the weights once; see the class of PyTorch."""
        if not self.by_kernel:
            guarded: Any = super().step
            return cast("float | None", inspect.unwrap(guarded.__func__)(self, closure))
        assert closure is None
        grad_scale, found_inf = (getattr(self.scaled, name, None) for name in ("grad_scale", "found_inf"))
        if self.excess is not None:
            grad_scale, self.excess = self.excess if grad_scale is None else self.excess * grad_scale, None
        self._update(grad_scale, found_inf)
        return None

    def _update(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Updates weights by the kernel.

        Args:
            grad_scale: None, or what the gradients are divided by, a tensor ().
            found_inf: None, or a tensor (); unless it is zero, weights and state stay.
        """
        raise NotImplementedError

    def leaves(self) -> list[Tensor]:
        """The tensors that have the gradients: the half-precision weights, and the weights that have none."""
        copies = self._copies()
        return [copies.get(weight, weight) for group in self.param_groups for weight in group["params"]]

    def _copies(self) -> dict[Tensor, Tensor]:
        return {} if self.half_weights is None else self.half_weights.copies

    def _with_gradients(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Weight, gradient and copy of the weights of a group that have a gradient."""
        copies = self._copies()
        for weight in group["params"]:
            copy = copies.get(weight)
            gradient = (weight if copy is None else copy).grad
            if gradient is not None:
                yield weight, gradient, copy


class ScaledGradients:
    """An optimiser whose update a kernel makes, as float16's GradScaler sees it: with the tensors that have gradients.

    The scaler checks their gradients, sets `grad_scale` and `found_inf`, and calls `step`.
    """

    _step_supports_amp_scaling = True

    def __init__(self, optimizer: KernelOptimizer) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group of all tensors."""
        return [{"params": self._optimizer.leaves()}]

    def step(self) -> None:
        """Updates the weights once, unless gradients overflowed."""
        self._optimizer.step()
