"""A forward and a backward pass of which only the gradients of the weights are wanted: what it may leave out."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor


@contextlib.contextmanager
def training_pass() -> Iterator[None]:
    """Within it, the backward pass needs fewer launches and moves fewer bytes, where the kernels run.

    The forward pass, the loss and one `loss.backward()` belong inside, on one stream, and nothing else that asks for
    gradients. Three things are done differently:

    - The gradients of slopes and biases are not results of the backward pass. One launch sums the partial sums of all
      layers when the context ends, and sets or adds to `.grad`. A weight with a hook, of another type than float32, or
      that is no leaf, gets its gradient at once, as outside. So do all weights if a process group is initialised,
      because DistributedDataParallel waits for the gradient of every weight.
    - The running means of batch norm move when the context ends, those of all layers in three launches.
    - Each use of an activation has a gradient of its own. `register_hook` of a tensor within the network, and
      `torch.autograd.grad` with respect to it, see the gradient of a part of its uses.

    In other threads, and where PyTorch compiles or traces, nothing is different; on a CPU only the moment at which
    running means move. If the body raises, slopes and biases may lack their gradients, and running means stay.
    """
    current = TrainingPass()
    token = _current.set(current)
    try:
        yield
        current.finish()
    finally:
        current.close()
        _current.reset(token)


class Layer(NamedTuple):
    """A layer's weights, and where the partial sums of their gradients are."""

    slope: Tensor
    bias: Tensor | None
    # of the first partial sum in the memory of the pass
    first: int
    shape: tuple[int, int, int]


class Update(NamedTuple):
    """How a running mean moves: by `weight` of the way towards `factor` times a value, float tensors of one shape."""

    average: Tensor
    value: Tensor
    factor: float
    weight: float


@torch.no_grad()
def move_averages(updates: Sequence[Update]) -> None:
    """Moves running means, each towards one value; on a GPU those of a weight and a device in three launches."""
    for weight in {update.weight for update in updates}:
        of_weight = [update for update in updates if update.weight == weight]
        values = torch._foreach_mul([update.value for update in of_weight], [update.factor for update in of_weight])
        torch._foreach_lerp_([update.average for update in of_weight], values, weight)


class TrainingPass:
    """The layers of one pass, and the memory of their partial sums.

    Backward passes run in threads of their own. Therefore a layer knows its pass from its forward pass.
    """

    def __init__(self) -> None:
        self._may_defer = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        self._size = 0
        self._memory: Tensor | None = None
        # by where their partial sums begin
        self._written: dict[int, Layer] = {}
        self._kernels: Any = None
        self._updates: dict[Tensor, Update] = {}

    def add(self, kernels: Any, slope: Tensor, bias: Tensor | None, shape: tuple[int, int, int]) -> Layer | None:
        """Reserves memory for the partial sums of a layer, or returns None if its gradients can't wait.

        Args:
            kernels: the module that sums them.
            slope, bias: the weights.
            shape: of the partial sums.
        """
        # memory that the backward pass has taken does not grow
        if not (self._may_defer and self._memory is None and _can_wait(slope) and (bias is None or _can_wait(bias))):
            return None
        self._kernels = kernels
        layer = Layer(slope, bias, self._size, shape)
        self._size += shape[0] * shape[1] * shape[2]
        return layer

    def partials_of(self, layer: Layer) -> Tensor | None:
        """Memory for the partial sums of a layer; None after the end of the pass, and the second time."""
        if not self._may_defer or layer.first in self._written:
            return None
        if self._memory is None:
            self._memory = torch.empty(self._size, dtype=torch.float32, device=layer.slope.device)
        elif self._memory.device != layer.slope.device:
            return None
        self._written[layer.first] = layer
        _, programs, width = layer.shape
        return self._memory.as_strided(layer.shape, (programs * width, width, 1), layer.first)

    def move_later(self, updates: Sequence[Update]) -> None:
        """Moves running means at the end of the pass, or at once those that move a second time."""
        again = [update for update in updates if update.average in self._updates]
        if again:
            move_averages([self._updates.pop(update.average) for update in again])
        self._updates |= {update.average: update for update in updates}

    def finish(self) -> None:
        """Moves running means; sums the partial sums, and sets or adds to `.grad` of the weights."""
        move_averages(tuple(self._updates.values()))
        if self._memory is None:
            return
        written = self._written.values()
        layers = tuple((layer.first, *layer.shape[1:], len(layer.slope)) for layer in written)
        sums = self._kernels.sum_all_partials(self._memory, layers)
        for layer, (slope_sum, bias_sum) in zip(written, sums, strict=True):
            _accumulate(layer.slope, slope_sum)
            if layer.bias is not None:
                _accumulate(layer.bias, bias_sum)

    def close(self) -> None:
        """Ends the pass: from now on gradients do not wait."""
        self._may_defer, self._memory, self._written, self._updates = False, None, {}, {}


_current: ContextVar[TrainingPass | None] = ContextVar("training_pass", default=None)


def current_pass() -> TrainingPass | None:
    """The pass that this thread is in, or None."""
    return _current.get()


def _can_wait(weight: Tensor) -> bool:
    # other subclasses of Tensor, such as those of sharded weights, have rules of their own
    is_plain = type(weight) in (Tensor, torch.nn.Parameter) and weight.is_leaf and weight.dtype == torch.float32
    return is_plain and not weight._backward_hooks and not weight._post_accumulate_grad_hooks


def _accumulate(weight: Tensor, gradient: Tensor) -> None:
    if not weight.requires_grad:
        return
    if weight.grad is None:
        weight.grad = gradient
    else:
        with torch.no_grad():
            weight.grad += gradient
