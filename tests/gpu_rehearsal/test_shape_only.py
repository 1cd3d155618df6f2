"""PyTorch without arithmetic (`shape_only.py`), and what a rehearsal finds fault with."""

import pytest
import torch
import torch.nn.functional as F

from tests.gpu_rehearsal import device
from tests.gpu_rehearsal.shape_only import SMALL, ShapeOnly

BIG = (1, 8, 16, 16, 16)


def layout_of(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype


def some_operations(x, weight):
    """Results of operations of which a step consists."""
    # a GPU's convolutions keep the layout
    y = F.conv3d(x, weight, padding=1).contiguous(memory_format=torch.channels_last_3d)
    half = y.to(torch.bfloat16) + 1
    joined = torch.cat([half, half], 1)
    return y, half, joined[:, 8:], F.pad(half, [1, 1, 0, 0, 2, 0]), joined.float().sum((0, 2, 3, 4))


def test_results_have_the_shapes_layouts_and_types_of_the_real_ones():
    x, weight = (torch.randn(size).contiguous(memory_format=torch.channels_last_3d) for size in (BIG, (8, 8, 3, 3, 3)))
    expected = some_operations(x, weight)
    with ShapeOnly():
        found = some_operations(x, weight)
    assert [layout_of(tensor) for tensor in found] == [layout_of(tensor) for tensor in expected]


def test_gradients_have_the_layouts_of_the_weights():
    x = torch.randn(BIG).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(16, 8, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with ShapeOnly():
        F.conv3d(x, weight, padding=1).sum().backward()
    assert layout_of(weight.grad) == layout_of(weight)


def test_nothing_large_is_computed():
    x = torch.ones(BIG)
    with ShapeOnly():
        x += 1
        few = torch.ones(3) + 1
    assert bool((x == 1).all())
    assert few.tolist() == [2, 2, 2]


def test_what_would_wait_for_a_gpu_is_noted():
    with ShapeOnly() as mode:
        torch.ones(SMALL + 1).sum()
        assert mode.waits == []
        torch.ones(SMALL + 1).sum().item()
    assert mode.waits == ["_local_scalar_dense"]


def row(**changes):
    return {"name": "kernel", "threads": 128, "registers": 96, "shared": 0, "stack": 0} | changes


def launch(grid=(1, 1, 1), stream=device.STREAM, shared=0):
    return device.Launch(grid=grid, block=(128, 1, 1), shared=shared, stream=stream)


@pytest.mark.parametrize(
    ("rows", "launches", "message"),
    [
        ([row()], [launch((2**31 - 1, 65535, 65535))], None),
        ([row(stack=8)], [], "spills"),
        ([row(registers=256)], [], "256 registers"),
        ([row(registers=255, threads=288)], [], "288 threads"),
        ([row(shared=(227 << 10) + 1)], [], "bytes of shared memory"),
        ([], [launch(shared=(227 << 10) + 1)], "bytes of shared memory"),
        ([], [launch((2**31, 1, 1))], "a grid of"),
        ([], [launch((1, 65536, 1))], "a grid of"),
        ([], [launch((0, 1, 1))], "a grid of"),
        ([], [launch(stream=0)], "on stream 0"),
    ],
)
def test_what_a_device_would_refuse_is_found(rows, launches, message):
    pytest.importorskip("triton", reason="Triton is not installed")
    from tests.gpu_rehearsal.rehearse import violations

    found = list(violations(rows, launches, device.DEVICES[9, 0]))
    assert len(found) == (0 if message is None else 1)
    assert message is None or message in found[0]
