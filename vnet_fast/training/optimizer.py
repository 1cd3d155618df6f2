"""The optimisers of a training step."""

from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.ops.adamw import AdamSettings, AdamWeights, adamw, advance
from vnet_fast.ops.sgd import Weights, sgd
from vnet_fast.training.kernel_optimizer import KernelOptimizer


class SGD(KernelOptimizer, torch.optim.SGD):
    """PyTorch's SGD, whose update is one kernel with half-precision weights.

    Args:
        groups: parameters and their settings.
        momentum: the momentum factor.
        fused: whether PyTorch's update is one kernel.
        nesterov: whether the momentum is Nesterov's.
    """

    operation = "sgd"

    def __init__(self, groups: list[dict[str, Any]], momentum: float, fused: bool, nesterov: bool = False) -> None:
        super().__init__(groups, momentum=momentum, fused=fused, nesterov=nesterov)

    def _update(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        for group in self.param_groups:
            tensors = [
                Weights(weight, gradient, self._momentum(weight) if group["momentum"] else None, copy)
                for weight, gradient, copy in self._with_gradients(group)
            ]
            settings = group["momentum"], group["weight_decay"], grad_scale, found_inf, group["nesterov"]
            sgd(tensors, group["lr"], *settings)

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


class AdamW(KernelOptimizer, torch.optim.AdamW):
    """PyTorch's AdamW, whose update is one kernel, with half-precision weights or without, and with the average of the
    weights if there is one.

    Args:
        groups: parameters and their settings.
        fused: whether PyTorch's update is one kernel.
        capturable: whether a CUDA graph can hold PyTorch's update.
    """

    operation, without_copies = "adamw", True

    def __init__(self, groups: list[dict[str, Any]], fused: bool, capturable: bool) -> None:
        super().__init__(groups, fused=fused, capturable=capturable)

    def _update(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        decay = None if self.average is None else self.average.number
        entries = [
            [self._entry(weight, gradient, copy) for weight, gradient, copy in self._with_gradients(group)]
            for group in self.param_groups
        ]
        advance([entry.step for tensors in entries for entry in tensors], found_inf)
        for group, tensors in zip(self.param_groups, entries, strict=True):
            numbers = group["lr"], group["betas"], group["eps"], group["weight_decay"]
            adamw(tensors, AdamSettings(*numbers, grad_scale, found_inf, decay))

    def _entry(self, weight: Tensor, gradient: Tensor, copy: Tensor | None) -> AdamWeights:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        average = None if self.average is None else self.average.hand_over(weight)
        return AdamWeights(weight, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"], copy, average)


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
        return AdamW(groups, fused=on_gpu, capturable=on_gpu)
    optimizer = SGD(groups, momentum, fused=on_gpu, nesterov=name == "nesterov")
    if momentum:
        # fused, PyTorch leaves them unwritten where float16's scaler skips the first update
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimizer
