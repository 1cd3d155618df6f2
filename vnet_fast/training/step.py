"""One training step: eager, or one CUDA graph."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.devices import mixed_precision
from vnet_fast.ops.capture import captured, on_side_stream
from vnet_fast.ops.training_pass import training_pass
from vnet_fast.training.gradients import divide, excess_of
from vnet_fast.training.half_weights import HalfWeights
from vnet_fast.training.kernel_optimizer import KernelOptimizer
from vnet_fast.training.weight_average import WeightAverage

# Iterations before the graph is captured. In the first, cuDNN chooses its algorithms, kernels are compiled and the
# optimiser creates its state. The second runs as all later ones do, and one is to spare.
WARM_UP = 3
# below it the scaler of float16 has given up: gradients overflow although they are not scaled up
SMALLEST_SCALE = 1.0


class Step:
    """One training step: batch, forward pass, loss, backward pass and update.

    With `graph`, on a CUDA device, the first iterations run eagerly and the next one is captured. From then on an
    iteration is one replay of the graph. Inputs of another shape run eagerly between replays. If the capture fails,
    `refusal` says why, and all iterations run eagerly.

    Args:
        model: the network.
        loss: called with (logits, target).
        optimizer: of the model's parameters; `make_optimizer` returns one that a graph can hold. It keeps the
            convolutions' weights in half precision too, until `release`, if the precision is mixed and kernels run.
        autocast: the dtype of mixed precision, or None for full precision.
        prepare: None, or a function that makes (image, target) of the inputs, within the step.
        graph: whether a CUDA graph is wanted; without a CUDA device there is none.
        clip: None, or the largest norm of the gradients.
        ema: None, or the decay of an average of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        autocast: torch.dtype | None = None,
        prepare: Callable[..., tuple[Tensor, Tensor]] | None = None,
        graph: bool = False,
        clip: float | None = None,
        ema: float | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.autocast = model, loss, optimizer, autocast
        # `model` may be wrapped later, for several processes
        self.network = model
        self.prepare, self.clip = prepare, clip
        self.average = None if ema is None else WeightAverage(model, ema)
        self.device = next(model.parameters()).device
        # gradients in float16 underflow unless they are scaled; bfloat16 has the range of float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast is torch.float16)
        self.refusal: str | None = None
        self.learning_rate = float("nan")
        self.wants_graph = graph and self.device.type == "cuda"
        self._warmed = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] | None = None
        self._loss: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Updates the weights once.

        Args:
            *inputs: the arguments of `prepare`; without it an image (N, C, D, H, W) and a target (N, 1, D, H, W) of
                labels. On the model's device.

        Returns:
            the loss, a scalar tensor. The device is not waited for.
        """
        if isinstance(self.optimizer, KernelOptimizer) and self._graph is None:
            self.optimizer.keep_half_weights(self.model, self.autocast)
            self.optimizer.average = self.average
        if self._half_weights:
            self._half_weights.refresh()
        if self.average:
            self.average.advance()
        if not self.wants_graph:
            return self._iterate(inputs)
        if self._inputs is None:
            self._inputs = tuple(tensor.clone() for tensor in inputs)
        if _shapes_and_dtypes(inputs) != _shapes_and_dtypes(self._inputs):
            return self._iterate(inputs)
        for static, given in zip(self._inputs, inputs, strict=True):
            static.copy_(given)
        if self._graph is None and self._warmed < WARM_UP:
            self._warmed += 1
            static_inputs = self._inputs
            return on_side_stream(lambda: self._iterate(static_inputs))
        if self._graph is None and not self._capture():
            return self._iterate(inputs)
        assert self._graph is not None
        assert self._loss is not None
        self._graph.replay()
        # a copy, because the next replay overwrites the loss
        return self._loss.clone()

    @property
    def captured(self) -> bool:
        """Whether iterations are replays of a graph."""
        return self._graph is not None

    def _iterate(self, inputs: Sequence[Tensor]) -> Tensor:
        # a gradient of None is written and not added to, so that the graph needs no pass that clears gradients
        self.optimizer.zero_grad(set_to_none=True)
        image, target = self.prepare(*inputs) if self.prepare else inputs
        half_weights = self._half_weights.in_use() if self._half_weights else contextlib.nullcontext()
        with training_pass():
            with half_weights, mixed_precision(self.device, self.autocast):
                logits = self.model(image)
            loss = self.loss(logits, target)
            self.scaler.scale(loss).backward()
        if self.clip is not None:
            self._clip_gradients(self.clip)
        self.scaler.step(self._stepped())
        self.scaler.update()
        if self.average:
            self.average.update()
        return loss.detach()

    def _clip_gradients(self, largest: float) -> None:
        gradients = [leaf.grad for leaf in self._leaves() if leaf.grad is not None]
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None
        excess = excess_of(gradients, largest, scale)
        if isinstance(self.optimizer, KernelOptimizer) and self.optimizer.by_kernel:
            # which divides gradients anyway
            self.optimizer.excess = excess
        else:
            divide(gradients, excess)

    def _leaves(self) -> list[Tensor]:
        """The tensors that have the gradients."""
        if isinstance(self.optimizer, KernelOptimizer):
            return self.optimizer.leaves()
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]

    @property
    def _half_weights(self) -> HalfWeights | None:
        return self.optimizer.half_weights if isinstance(self.optimizer, KernelOptimizer) else None

    def _stepped(self) -> Any:
        """The optimiser, as the scaler has to see it."""
        optimizer = self.optimizer
        return optimizer.scaled if isinstance(optimizer, KernelOptimizer) and optimizer.by_kernel else optimizer

    def _capture(self) -> bool:
        """Captures an iteration in a graph, or notes why it can't be; returns whether there is a graph."""
        scale = self.scaler.state_dict()
        self.optimizer.zero_grad(set_to_none=True)
        inputs = self._inputs or ()
        try:
            self._graph, self._loss = captured(lambda: self._iterate(inputs))
        except RuntimeError as error:
            # nothing has run, but the optimiser and the scaler have noted an iteration, which is undone here
            self.optimizer.zero_grad(set_to_none=True)
            for name in ("grad_scale", "found_inf"):
                # the scaler deletes them only when the optimiser's step returns
                if hasattr(self._stepped(), name):
                    delattr(self._stepped(), name)
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaler.is_enabled())
            self.scaler.load_state_dict(scale)
            self.wants_graph = False
            self.refusal = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return self._graph is not None

    def still_scales(self) -> bool:
        """Whether the scaler of float16 may yet find a scale at which no gradient overflows."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= SMALLEST_SCALE

    def release(self) -> None:
        """Frees the graph, the gradients and the weights in half precision."""
        self._graph, self._inputs, self._loss, self._warmed = None, None, None, 0
        self.optimizer.zero_grad(set_to_none=True)
        self._drop_half_weights()

    def _drop_half_weights(self) -> None:
        # a graph writes to them, so there must be none any more
        assert self._graph is None
        if isinstance(self.optimizer, KernelOptimizer):
            self.optimizer.drop_half_weights()

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next iterations; each group of parameters has `rate` times its `scale`."""
        self.learning_rate = rate
        for group in self.optimizer.param_groups:
            value = rate * group.get("scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                # written in place, where the graph reads it
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the network has the averaged weights, if there is an average. No step is made within."""
        return self.average.in_use() if self.average else contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """The state of optimiser, scaler and average, in plain tensors and types, for a checkpoint."""
        average = {"average": self.average.state_dict()} if self.average else {}
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), **average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, on any device and in any precision.

        If there is an average of the weights, the network must have it already, and gets the weights that are trained.

        Raises:
            KeyError, ValueError: if it belongs to another network or optimiser.
        """
        # the settings of the groups stay, because it depends on the device which of them are tensors
        groups = self.optimizer.state_dict()["param_groups"]
        if [group["params"] for group in groups] != [group["params"] for group in state["optimizer"]["param_groups"]]:
            raise ValueError("the optimiser's state belongs to other parameters")
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        # a graph would go on using the tensors that are replaced here
        self._graph, self._warmed = None, 0
        self._drop_half_weights()
        if state["scaler"]:
            # the scaler's state is empty after a run in another precision
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])


def _shapes_and_dtypes(tensors: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]
