"""What the tests of the kernels that update weights share: tensors between numbers that nothing may write."""

import itertools

import pytest
import torch

from tests.ops.kernels import DEVICE

HALF = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.exhaustive)]
EPSILON = torch.finfo(torch.float32).eps
# beside every tensor: a number that an update would change
EDGE = 3.0


def shapes(block):
    """One number, odd lengths, a block exactly and one more, and what layouts of the network have."""
    lengths = [(1,), (3,), (257,), (block,), (block + 1,), (2 * block - 1,)]
    return [*lengths, (8, 1, 5, 5, 5), (6, 8, 3, 3, 3), (2, 7, 1, 1, 1)]


def on_device(tensor):
    """A copy whose numbers begin at a multiple of 16 bytes, between numbers that nothing may write."""
    memory = torch.full((tensor.numel() + 32,), EDGE, dtype=tensor.dtype, device=DEVICE)
    return memory[16:-16].as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def assert_edges_stay(entry):
    """Nothing beside the tensors of an entry was written."""
    for tensor in entry:
        if tensor is not None and tensor.ndim:
            memory = tensor.as_strided((tensor.numel() + 32,), (1,), tensor.storage_offset() - 16)
            assert (memory[:16] == EDGE).all()
            assert (memory[-16:] == EDGE).all()


def random(shape, generator):
    """Normally distributed, volumes of them channels-last."""
    tensor = torch.randn(shape, generator=generator)
    return tensor.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else tensor


def clones(entries, dtype=None):
    """The same numbers elsewhere, or in another type."""
    return [
        entry._make(tensor if tensor is None else tensor.clone().to(dtype or tensor.dtype) for tensor in entry)
        for entry in entries
    ]


def assert_same(ours, theirs):
    """To the last bit."""
    for a, b in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def error(found, exact):
    """The largest difference."""
    return (found.double() - exact.double()).abs().max().item()


class Grids:
    """Stands for a kernel, and keeps the grids of its launches."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **kwargs: None
