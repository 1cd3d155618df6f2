"""Passes of a network over windows, which a CUDA graph replays: on a GPU, launching their kernels one by one takes
longer than what they compute.
"""

import math
import threading
import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from vnet_fast.devices import allows_tf32, free_memory, is_out_of_memory
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.capture import captured
from vnet_fast.ops.eager import is_eager

# Passes of a kind before one is captured. In the first, convolutions are timed and kernels compiled; the second runs as
# all later ones do. A capture takes longer than a pass, so it would not pay for fewer.
EAGER_PASSES = 2
# of probabilities, and the share of labels, by which a replay may differ: convolutions may sum in another order
ROUNDING, TURNED = 1e-2, 1e-3
# a label that no network has
UNWRITTEN = 255
Outputs = tuple[Tensor, ...]


class Passes:
    """Runs passes of networks: eagerly, and after the third of a kind as replays of a CUDA graph.

    A pass is of the kind of the one before it if it is the same function of the same network, for an input of the same
    shape. There is at most one graph, whose memory is that of one pass; it goes when a pass of another kind comes. It
    reads the weights where they lie, and sees what is written to them. If they lie elsewhere, the pass is of another
    kind.

    Only networks of this package are captured, in evaluation mode and without hooks, on a GPU. All others run
    eagerly, and so does a pass within another capture, within autocast, or beside that of another thread. If a capture
    fails, or its first replay differs from the pass, `explain` says so, and from then on all passes run eagerly.

    Args:
        graph: whether a graph is wanted.
    """

    def __init__(self, graph: bool = True) -> None:
        self.wants_graph, self._refusal = graph, ""
        # one thread replays; the others do not wait for it
        self._lock = threading.Lock()
        self._kind: Hashable = None
        self._passes = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input: Tensor | None = None
        self._outputs: Outputs = ()

    @torch.inference_mode()
    def __call__(
        self, function: Callable[[Tensor], Outputs], model: nn.Module, x: Tensor, settings: Hashable
    ) -> Outputs:
        """The function's tensors, which are new ones.

        Args:
            function: of a tensor on the model's device. It reads nothing else that changes but the model's weights, and
                does not wait for the device.
            model: the network of the function, or a ModuleList of several.
            x: its argument.
            settings: all else that the function depends on.
        """
        # a thread begins with the first GPU as its current one
        with torch.cuda.device_of(x):
            if not (self.wants_graph and _may_capture(x) and self._lock.acquire(blocking=False)):
                return function(x)
            try:
                weights = _weights_of(model)
                if weights is None:
                    return function(x)
                return self._run(function, x, (settings, weakref.ref(model), weights, *_surroundings(x)))
            finally:
                self._lock.release()

    @property
    def captured(self) -> bool:
        """Whether passes of the last kind are replays of a graph."""
        return self._graph is not None

    def _run(self, function: Callable[[Tensor], Outputs], x: Tensor, kind: Hashable) -> Outputs:
        if kind != self._kind:
            self._forget()
            self._kind = kind
        if self._graph is None:
            self._passes += 1
            outputs = function(x)
            # this one is compared with a replay
            if self._passes > EAGER_PASSES:
                self._capture(function, x, outputs)
            return outputs
        assert self._input is not None
        self._input.copy_(x)
        self._graph.replay()
        # copies, because the next replay overwrites them
        return tuple(output.clone() for output in self._outputs)

    def _capture(self, function: Callable[[Tensor], Outputs], x: Tensor, expected: Outputs) -> None:
        """Captures the pass that gave some outputs, or notes why it can't be, or that a replay gives others."""
        try:
            self._input = static = x.clone()
            self._graph, self._outputs = captured(lambda: function(static))
            for output in self._outputs:
                # what a graph without any kernel would leave
                output.fill_(math.nan if output.is_floating_point() else UNWRITTEN)
            self._graph.replay()
            if not all(map(_are_close, self._outputs, expected)):
                self._give_up("a replay gives another result")
        except Exception as error:
            # whatever a capture refuses; what is wrong with the pass itself, the eager one will say
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._give_up("out of memory" if is_out_of_memory(error) else lines[0])
        if self._graph is None:
            # after the except clause, whose traceback keeps the memory of the failed pass
            free_memory(x.device)

    def _forget(self) -> None:
        self._graph, self._input, self._outputs = None, None, ()
        self._kind, self._passes = None, 0

    def _give_up(self, reason: str) -> None:
        self._forget()
        self.wants_graph, self._refusal = False, reason

    def release(self) -> None:
        """Frees the graph. Later passes may be captured again."""
        with self._lock:
            self._forget()

    def make_room(self) -> bool:
        """Frees the graph for good, where memory is short; returns whether there was one."""
        with self._lock:
            there = self._graph is not None
            if there:
                self._give_up("out of memory")
        return there

    def explain(self, notify: Callable[[str], object]) -> None:
        """Calls a function with the reason why there is no graph any more, once, if there is one."""
        if self._refusal:
            notify(f"no CUDA graph of the network, which runs eagerly: {self._refusal}")
            self._refusal = ""


def _are_close(output: Tensor, expected: Tensor) -> bool:
    """Whether a replay's output is that of a pass, but for rounding, which may turn a label."""
    if not output.is_floating_point():
        return float((output != expected).double().mean()) <= TURNED
    return bool(torch.isclose(output.float(), expected.float(), ROUNDING, ROUNDING, equal_nan=True).all())


def _may_capture(x: Tensor) -> bool:
    """Whether what is computed with a tensor now can be captured."""
    return (
        x.is_cuda
        and is_eager(x)
        and not torch.cuda.is_current_stream_capturing()
        # whose cache would hand out weights that the graph has cast
        and not torch.is_autocast_enabled("cuda")
    )


def _surroundings(x: Tensor) -> tuple[Hashable, ...]:
    """What changes a pass, or the place of its kernels, from outside."""
    chosen = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, allows_tf32()
    # a replay on another stream would not wait for what was launched before
    return x.shape, x.dtype, x.device, torch.cuda.current_stream(), chosen


def _weights_of(model: nn.Module) -> Hashable:
    """Where the weights and buffers of networks lie, and in which form; None if a graph can't stand for the networks.

    A graph that was captured with the same answer reads what the networks have now. The answer is the same after
    tensors are written in place, and another one after they are replaced, moved or cast.
    """
    networks = model if isinstance(model, nn.ModuleList) else [model]
    if any(type(network) is not VNet for network in networks) or nn.modules.module._has_any_global_hook():
        # what others do on the host is not known
        return None
    found, modules = [], [model]
    # not by `model.modules()`, which takes half as long again, and every replay waits for this
    while modules:
        module = modules.pop()
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return None
        modules += filter(None, module._modules.values())
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found.append((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()))
    return tuple(found)
