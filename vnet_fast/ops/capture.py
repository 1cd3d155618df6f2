"""Captures what a function launches in a CUDA graph, and leaves nothing behind where that fails."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
# all captures of a device have one stream, and a capture begins with waiting for the device, which would end another's
_one_at_a_time = threading.Lock()


def on_side_stream(function: Callable[[], Result]) -> Result:
    """Calls a function on a side stream, where iterations before a capture must run."""
    current, stream = torch.cuda.current_stream(), _side_stream(torch.cuda.current_device())
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            return function()
    finally:
        current.wait_stream(stream)


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    # one stream for all calls, because each stream has memory of its own
    return torch.cuda.Stream(device)


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    # not the one above, on which another thread may be computing
    return torch.cuda.Stream(device)


def captured(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of the kernels that a function launches, and the function's result, which each replay updates.

    Raises:
        Exception: what the function raised, or a RuntimeError if the graph can't be captured. Stream, memory and random
            numbers are then as if nothing had been tried.
    """
    with _one_at_a_time:
        return _captured(function)


def _captured(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    device, graph, pool = torch.cuda.current_device(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    _take_share(device, pool)
    failure: BaseException | None = None
    try:
        with _capturing(graph, pool):
            try:
                result = function()
            except BaseException as error:
                failure = error
                raise
    except BaseException as error:
        _abandon(device, graph, pool)
        # the function's error says more than the one of the capture that it made invalid
        raise (failure or error) from None
    torch._C._cuda_releasePool(device, pool)
    return graph, result


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    # PyTorch's own stream of captures is of the device of a program's first one: on another, a capture would be empty
    stream = _capture_stream(torch.cuda.current_device())
    # other threads, such as those that pin memory, may go on allocating
    capture = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    # PyTorch leaves the capture's stream the current one if the capture can't be ended
    with torch.cuda.stream(torch.cuda.current_stream()), contextlib.ExitStack() as stack:
        # its first capture makes tensors to which later ones write, also outside of inference mode (pytorch#166792)
        with torch.inference_mode(False):
            stack.enter_context(capture)
        yield


def _take_share(device: int, pool: Any) -> None:
    """Takes a share of a graph's pool of memory, without allocating in it."""
    torch._C._cuda_beginAllocateCurrentThreadToPool(device, pool)
    torch._C._cuda_endAllocateToPool(device, pool)


def _abandon(device: int, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Gives back what a failed capture holds, of which PyTorch's versions give back different parts.

    Up to 2.11 the allocator goes on as if it captured (pytorch#180395). Up to 2.13 the graph's share of the pool is
    not returned, nor is its memory (pytorch#190348); later `reset` returns it. A pool can't be asked how many shares it
    has, but it refuses another if it has none.
    """
    graph.reset()
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    # the share of the graph, or if that is returned already, ours
    torch._C._cuda_releasePool(device, pool)
    with contextlib.suppress(RuntimeError):
        _take_share(device, pool)
        torch._C._cuda_releasePool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    # up to 2.11, the generator of random numbers stays captured until a capture succeeds
    with contextlib.suppress(RuntimeError), _capturing(torch.cuda.CUDAGraph()):
        torch.zeros((), device=torch.device("cuda", device))
