"""The exponential moving average of a network's weights, which is validated and predicts better than the last ones."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of the weights of a network, and of its buffers, such as running statistics.

    After update t, counted from 0, the average is d a + (1 - d) w, where d is the smaller one of `decay` and
    (1 + t) / (10 + t): at first it follows the weights, which are far from good.

    A CUDA graph can hold `update`: what changes from one to the next is a number on the device.

    Args:
        model: the network; its parameters and buffers stay the same tensors.
        decay: of the average, from 0 to below 1.

    Source:
        the ramp is that of tf.train.ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        named = [*model.named_parameters(), *model.named_buffers()]
        # a counter has no average
        self.weights: dict[str, Tensor] = {name: weight for name, weight in named if weight.is_floating_point()}
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()}
        device = next(iter(self.values.values())).device
        self._current = 0.0
        self._on_device = None if device.type == "cpu" else torch.zeros((), device=device)
        self._value_of = {weight: self.values[name] for name, weight in self.weights.items()}
        # weights whose average the optimiser has moved already
        self._handed_over: set[Tensor] = set()
        self._in_use = False

    @property
    def number(self) -> Tensor | None:
        """The decay of the next update on the device, (), float32; None on a CPU."""
        return self._on_device

    def hand_over(self, weight: Tensor) -> Tensor | None:
        """The average of a weight for an optimiser, which moves it as the next `update` would, once the weight is new.

        That update leaves it alone. It is None on a CPU, and if the weight has no average.
        """
        value = None if self._on_device is None else self._value_of.get(weight)
        if value is not None:
            self._handed_over.add(weight)
        return value

    def advance(self) -> None:
        """Sets the decay of the next update; called on the host before each, outside of a graph."""
        self._current = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if self._on_device is not None:
            # written in place, where the graph reads it
            self._on_device.fill_(self._current)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights, but for those that the optimiser has moved."""
        weights = [weight for weight in self.weights.values() if weight not in self._handed_over]
        values = [self._value_of[weight] for weight in weights]
        self._handed_over.clear()
        if not weights:
            return
        if self._on_device is None:
            torch._foreach_lerp_(values, weights, 1 - self._current)
            return
        # w + d (a - w) in place, because `_foreach_lerp_` takes no number on the device
        torch._foreach_sub_(values, weights)
        torch._foreach_mul_(values, self._on_device)
        torch._foreach_add_(values, weights)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the network has the averaged weights. No step can be made within."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # the memory and not the numbers, so that a graph finds its own again afterwards
        for name, weight in self.weights.items():
            value = self.values[name]
            weight.data, value.data = value.data, weight.data
        self._in_use = not self._in_use

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, and the weights as they are trained, for a checkpoint with the averaged weights."""
        raw = self.values if self._in_use else self.weights
        return {"updates": self.updates, "raw": {name: weight.detach() for name, weight in raw.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the average from a network that has the averaged weights, and gives it those that are trained.

        Raises:
            KeyError: if a weight is missing.
        """
        for name, weight in self.weights.items():
            self.values[name].copy_(weight)
            weight.copy_(state["raw"][name])
        self.updates = state["updates"]
