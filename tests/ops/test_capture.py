"""What a capture that fails leaves behind: nothing. On a device, and by the books that PyTorch's versions keep."""

import functools
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vnet_fast.ops import capture

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ["2.11", "2.13", "later"]
INVALID = "operation failed due to a previous error during capture"


class Cuda:
    """The state that captures change, as PyTorch's allocator, graphs and generator keep it.

    Args:
        version: of PyTorch. Up to 2.11 a capture that can't be ended leaves allocator and generator as they are. Up to
            2.13 `reset` returns the share of a graph's pool only after a success.
    """

    def __init__(self, version):
        self.version = version
        self.stream, self.device = "default stream", 0
        # of the pools: those that are allocated in, their shares, and the blocks they hold; pools without a share
        self.capturing, self.shares, self.blocks, self.freeable = [], Counter(), Counter(), set()
        self.generator_is_captured, self.is_invalid = False, False
        self.pools = 0

    def install(self, monkeypatch):
        functions = {
            "CUDAGraph": lambda: Graph(self),
            "Stream": lambda device: f"stream of device {device}",
            "stream": lambda stream: OnStream(self, stream),
            "graph_pool_handle": self.new_pool,
            "current_device": lambda: self.device,
            "current_stream": lambda: self.stream,
            "synchronize": lambda: None,
            "empty_cache": self.empty_cache,
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)
        # as an earlier capture on the first device leaves it
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", "PyTorch's stream of device 0")
        monkeypatch.setattr(capture, "_capture_stream", functools.cache(lambda device: torch.cuda.Stream(device)))
        private = {
            "_host_emptyCache": lambda: None,
            "_cuda_beginAllocateCurrentThreadToPool": lambda device, pool: self.begin(pool),
            "_cuda_endAllocateToPool": lambda device, pool: self.end(pool),
            "_cuda_releasePool": lambda device, pool: self.release(pool),
        }
        for name, function in private.items():
            monkeypatch.setattr(torch._C, name, function, raising=False)
        monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: self.allocate())

    def new_pool(self):
        self.pools += 1
        return (0, self.pools)

    def allocate(self):
        self.blocks[self.capturing[-1] if self.capturing else None] += 1

    def begin(self, pool):
        if pool in self.shares and not self.shares[pool] > 0:
            raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
        self.shares[pool] += 1
        self.capturing.append(pool)

    def end(self, pool):
        if pool not in self.capturing:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.capturing.remove(pool)

    def release(self, pool):
        if pool not in self.shares:
            raise RuntimeError("INTERNAL ASSERT FAILED: no such pool")
        self.shares[pool] -= 1
        if self.shares[pool] < 0:
            raise RuntimeError("uc >= 0 INTERNAL ASSERT FAILED")
        if self.shares[pool] == 0:
            self.freeable.add(pool)

    def empty_cache(self):
        if self.capturing:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        for pool in self.freeable:
            if self.shares[pool] != 0:
                raise RuntimeError("use_count == 0 INTERNAL ASSERT FAILED")
            del self.shares[pool], self.blocks[pool]
        self.freeable.clear()


class OnStream:
    def __init__(self, cuda, stream):
        self.cuda, self.stream = cuda, stream

    def __enter__(self):
        self.before, self.cuda.stream = self.cuda.stream, self.stream

    def __exit__(self, *_):
        self.cuda.stream = self.before


class Graph:
    def __init__(self, cuda):
        self.cuda, self.ended, self.holds_pool = cuda, False, False

    def capture_begin(self, pool=None, capture_error_mode="global", **_):
        self.pool = pool or self.cuda.new_pool()
        self.cuda.begin(self.pool)
        self.holds_pool = True
        self.cuda.generator_is_captured, self.cuda.is_invalid = True, False

    def capture_end(self):
        if self.cuda.is_invalid and self.cuda.version == "2.11":
            raise RuntimeError(INVALID)
        self.cuda.end(self.pool)
        if self.cuda.is_invalid:
            self.cuda.generator_is_captured = False
            raise RuntimeError(INVALID)
        self.cuda.generator_is_captured = False
        self.ended = True

    def reset(self):
        if self.holds_pool and (self.ended or self.cuda.version == "later"):
            self.cuda.release(self.pool)
            self.holds_pool = False

    def replay(self):
        assert self.ended

    def __del__(self):
        self.reset()


@pytest.fixture(params=VERSIONS)
def cuda(request, monkeypatch):
    pretended = Cuda(request.param)
    pretended.install(monkeypatch)
    return pretended


def test_a_capture_begins_outside_of_inference_mode_and_goes_on_within(cuda, monkeypatch):
    """In inference mode PyTorch's generator would get tensors that no later capture may write to."""
    modes, begin = [], Graph.capture_begin

    def begin_and_note(*args, **kwargs):
        modes.append(torch.is_inference_mode_enabled())
        begin(*args, **kwargs)

    monkeypatch.setattr(Graph, "capture_begin", begin_and_note)
    with torch.inference_mode():
        capture.captured(lambda: modes.append(torch.is_inference_mode_enabled()))
    assert modes == [False, True]


@pytest.mark.parametrize("device", [0, 1])
def test_a_capture_has_a_stream_of_the_current_device(cuda, device):
    """On PyTorch's own, which belongs to the device of the first capture, kernels of another one are not captured."""
    cuda.device, streams = device, []
    capture.captured(lambda: streams.append(torch.cuda.current_stream()))
    assert streams == [f"stream of device {device}"]
    assert cuda.stream == "default stream"


def test_one_thread_captures_at_a_time(monkeypatch):
    under_way = []

    def captured(function):
        under_way.append(function)
        time.sleep(0.02)
        assert under_way == [function]
        under_way.clear()
        return function

    monkeypatch.setattr(capture, "_captured", captured)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(capture.captured, range(8))) == list(range(8))


def assert_clean(cuda):
    assert cuda.stream == "default stream"
    assert cuda.capturing == []
    assert not cuda.generator_is_captured
    torch.cuda.empty_cache()
    assert not +cuda.shares
    assert not +cuda.blocks


def failing(cuda, way):
    """A function that can't be captured, and the first line of the error that one should see."""

    def not_permitted():
        cuda.allocate()
        cuda.is_invalid = True
        raise RuntimeError("operation not permitted when stream is capturing")

    def invalid_at_the_end():
        cuda.allocate()
        cuda.is_invalid = True

    def wrong():
        cuda.allocate()
        raise ValueError("nothing to do with captures")

    def interrupted():
        cuda.is_invalid = True
        raise KeyboardInterrupt("interrupted")

    return {
        "not permitted": (not_permitted, "operation not permitted when stream is capturing"),
        "invalid at the end": (invalid_at_the_end, INVALID),
        "wrong": (wrong, "nothing to do with captures"),
        "interrupted": (interrupted, "interrupted"),
    }[way]


@pytest.mark.parametrize("way", ["not permitted", "invalid at the end", "wrong", "interrupted"])
def test_a_failed_capture_leaves_nothing_behind(cuda, way):
    function, message = failing(cuda, way)
    with pytest.raises((RuntimeError, ValueError, KeyboardInterrupt), match=message):
        capture.captured(function)
    assert_clean(cuda)
    # and others work
    graph, result = capture.captured(lambda: "result")
    assert result == "result"
    assert graph.ended
    graph.reset()
    assert_clean(cuda)


def test_a_capture_that_begins_badly_leaves_nothing_behind(cuda, monkeypatch):
    def fail(self, pool=None, **_):
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(Graph, "capture_begin", fail)
    with pytest.raises(RuntimeError, match="no graphs here"):
        capture.captured(lambda: None)
    assert_clean(cuda)


def test_a_captured_graph_keeps_its_memory(cuda):
    graph, _ = capture.captured(cuda.allocate)
    assert cuda.stream == "default stream"
    assert cuda.capturing == []
    torch.cuda.empty_cache()
    # of the graph alone
    assert list(cuda.shares.values()) == [1]
    assert sum(cuda.blocks.values()) == 1
    graph.reset()
    assert_clean(cuda)


# On a GPU, in a process of its own: what a failed capture might leave behind would fail other tests

FAILING_STEP = """
import torch
from vnet_fast import DiceLoss, VNet
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import WARM_UP, Step

def step(graph):
    torch.manual_seed(0)
    model = VNet(base_channels=2).cuda()
    return Step(model, DiceLoss.paper(), make_optimizer(model, "sgd", 1e-3, 0.9, 5e-4), {autocast}, graph=graph)

image = torch.randn(2, 1, 16, 32, 32, device="cuda")
batch = image, (image > 1).to(torch.uint8)
waits = step(graph=True)
loss = waits.loss
waits.loss = lambda logits, target: loss(logits, target) * (1 if target.sum().item() >= 0 else 2)
stream = torch.cuda.current_stream()
for iteration in range(WARM_UP + 3):
    assert 0 <= waits(*batch).item() <= 1
    assert torch.cuda.current_stream() == stream
assert waits.refusal, waits.refusal
assert not waits.captured
# allocator and generator work
waits.release()
torch.cuda.empty_cache()
torch.randn(8, device="cuda")
reserved = torch.cuda.memory_reserved()
works = step(graph=True)
for iteration in range(WARM_UP + 3):
    works(*batch)
assert works.captured, works.refusal
pools = {{segment.get("segment_pool_id") for segment in torch.cuda.memory_snapshot()}}
del works
torch.cuda.empty_cache()
print("reserved", reserved, "pools", pools)
"""


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
def test_what_waits_for_the_device_can_not_be_captured(autocast):
    code = FAILING_STEP.format(autocast=autocast)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
