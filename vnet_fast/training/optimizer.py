"""The optimisers of a training step, and weights of convolutions in half precision that SGD keeps beside its own."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.ops.sgd import Weights, sgd


class HalfWeights:
    """The weights of a network's convolutions in half precision, for the forward passes of a training step.

    Autocast casts every weight in the forward pass and every gradient in the backward pass. These copies are leaves:
    they are read as they are, and have gradients of their own type; `.grad` of the weights stays None. The optimiser
    keeps them equal to the rounded weights. What is written to a weight through `.data`, which PyTorch does not count,
    they follow after the next update, or `Step.release`. The network has them only while `in_use`, so that nothing else
    comes to see them.

    Args:
        model: the network.
        dtype: of the copies.
    """

    def __init__(self, model: VNet, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.convolutions = _with_copies(model)
        self.copies = {
            convolution.weight: convolution.weight.detach().to(dtype).requires_grad_()
            for convolution in self.convolutions
        }
        self._versions = self._current_versions()

    def refresh(self) -> None:
        """Copies the weights again if anything but the optimiser has set them, such as `load_state_dict`."""
        # PyTorch counts what it does to a tensor; kernels that it does not know are not counted
        if self._versions != self._current_versions():
            with torch.no_grad():
                for weight, copy in self.copies.items():
                    copy.copy_(weight)
            self._versions = self._current_versions()

    def _current_versions(self) -> list[int]:
        return [weight._version for weight in self.copies]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the convolutions use the copies instead of their weights."""
        for convolution in self.convolutions:
            convolution.compute_weight = self.copies[convolution.weight]
        try:
            yield
        finally:
            for convolution in self.convolutions:
                del convolution.compute_weight


def _with_copies(model: VNet) -> list[nn.Conv3d | nn.ConvTranspose3d]:
    """The convolutions whose weights can have copies: those that are trained, as they are, and without hooks."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            # a parametrised weight is no parameter, and is computed anew at each access
            weight = module._parameters.get("weight")
            hooked = weight is not None and (weight._backward_hooks or weight._post_accumulate_grad_hooks)
            if weight is not None and weight.requires_grad and not hooked:
                found.append(module)
    return found


class SGD(torch.optim.SGD):
    """PyTorch's SGD, which can keep half-precision weights: then one kernel updates both, from gradients as they come.

    State and settings are PyTorch's, and so is the update without half-precision weights.

    Args:
        groups: parameters and their settings.
        momentum: the momentum factor.
        fused: whether PyTorch's update is one kernel.
        nesterov: whether the momentum is Nesterov's.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, fused: bool, nesterov: bool = False) -> None:
        super().__init__(groups, momentum=momentum, fused=fused, nesterov=nesterov)
        self.half_weights: HalfWeights | None = None
        # what the next update divides gradients by, a tensor (), or None
        self.excess: Tensor | None = None
        self.scaled = ScaledGradients(self)

    def keep_half_weights(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        """Keeps the weights of a model in half precision from now on, where this saves time; otherwise stops it.

        It does where the kernels run. A network within another module keeps none: DistributedDataParallel waits for
        gradients of the network's own weights.

        Args:
            model: that the optimiser trains.
            dtype: of mixed precision, or None.
        """
        kept = self.half_weights
        # a weight may be frozen, or given a hook, between two steps
        if kept is not None and isinstance(model, VNet) and kept.convolutions != _with_copies(model):
            kept = None
        if dtype is None or not isinstance(model, VNet) or kernels_for("sgd", next(model.parameters())) is None:
            self.half_weights = None
        elif kept is None or (kept.model, kept.dtype) != (model, dtype):
            self.half_weights = HalfWeights(model, dtype)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of weights and half-precision weights."""
        super().zero_grad(set_to_none)
        for copy in self._copies().values():
            copy.grad = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        # PyTorch restores only its own attributes in a copy
        super().__setstate__(state)
        self.half_weights, self.excess = None, None
        self.scaled = ScaledGradients(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates the weights once; see torch.optim.SGD."""
        if self.half_weights is None:
            return super().step(closure)
        assert closure is None
        grad_scale, found_inf = (getattr(self.scaled, name, None) for name in ("grad_scale", "found_inf"))
        if self.excess is not None:
            grad_scale, self.excess = self.excess if grad_scale is None else self.excess * grad_scale, None
        for group in self.param_groups:
            tensors = [entry for weight in group["params"] for entry in self._entries(weight, group["momentum"])]
            settings = group["momentum"], group["weight_decay"], grad_scale, found_inf, group["nesterov"]
            sgd(tensors, group["lr"], *settings)
        return None

    def leaves(self) -> list[Tensor]:
        """The tensors that have the gradients: the half-precision weights, and the weights that have none."""
        copies = self._copies()
        return [copies.get(weight, weight) for group in self.param_groups for weight in group["params"]]

    def _copies(self) -> dict[Tensor, Tensor]:
        return {} if self.half_weights is None else self.half_weights.copies

    def _entries(self, weight: Tensor, momentum: float) -> Iterator[Weights]:
        """What belongs to a weight, if it has a gradient."""
        copy = self._copies().get(weight)
        gradient = (weight if copy is None else copy).grad
        if gradient is None:
            return
        buffer = None
        if momentum:
            state = self.state[weight]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(weight)
            buffer = state["momentum_buffer"]
        yield Weights(weight, gradient, buffer, copy)


class ScaledGradients:
    """An SGD with half-precision weights as float16's GradScaler sees it: its tensors are those with the gradients.

    The scaler checks their gradients, sets `grad_scale` and `found_inf`, and calls `step`.
    """

    _step_supports_amp_scaling = True

    def __init__(self, optimizer: SGD) -> None:
        self._optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group of all tensors."""
        return [{"params": self._optimizer.leaves()}]

    def step(self) -> None:
        """Updates the weights once, unless gradients overflowed."""
        self._optimizer.step()


def make_optimizer(
    model: nn.Module, name: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimiser, with the rates of the authors' release: with SGD, biases learn twice as fast and do not decay.

    On a CUDA device the optimiser is one kernel, and the learning rate of each group is a tensor, which a graph
    reads. On a CPU, PyTorch's fused optimisers copy channels-last weights, and the plain loop takes half the time.

    Args:
        model: its parameters are updated, but for those that require no gradient.
        name: `sgd`, `nesterov` (SGD with Nesterov's momentum) or `adamw`.
        learning_rate: of the first iteration.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    biases = [weight for key, weight in trained.items() if key.endswith("bias")]
    others = [weight for key, weight in trained.items() if not key.endswith("bias")]
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": weight_decay, "scale": 1.0},
        {"params": biases, "weight_decay": 0.0, "scale": 1.0 if name == "adamw" else 2.0},
    ]
    for group in groups:
        rate = learning_rate * group["scale"]
        group["lr"] = torch.tensor(rate, device=device) if on_gpu else rate
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=on_gpu, capturable=on_gpu)
    optimizer = SGD(groups, momentum, fused=on_gpu, nesterov=name == "nesterov")
    if momentum:
        # fused, PyTorch leaves them unwritten where float16's scaler skips the first update
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer
