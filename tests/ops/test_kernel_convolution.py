"""The kernel that stacks the shifts of a volume against its definition."""

import pytest
import torch

from tests.ops.kernels import DEVICE, MARKS, TYPES, surrounded

pytest.importorskip("triton", reason="Triton is not installed")
from vnet_fast.kernels import convolution as kernels
from vnet_fast.ops.convolution import stack_definition

pytestmark = MARKS
LAST = torch.channels_last_3d


def volume(shape, dtype):
    """A volume between entries of NaN."""
    n, c, d, h, w = shape
    rows = torch.randn(n, d, h, w, c, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    return surrounded(rows).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((2, 16, 4, 5, 6), 5),
        ((1, 3, 7, 2, 9), 5),
        ((2, 1, 1, 3, 4), 5),
        ((1, 40, 2, 3, 5), 3),
        ((3, 8, 3, 1, 1), 7),
        ((1, 600, 3, 2, 2), 5),
        ((1, 4, 3, 17, 64), 5),
    ],
    ids=str,
)
def test_it_is_the_definition(shape, taps, dtype):
    x = volume(shape, dtype)
    assert kernels.supports(x, taps)
    stacked = kernels.stack(x, taps)
    assert stacked.is_contiguous(memory_format=LAST)
    assert torch.equal(stacked, stack_definition(x, taps))


def test_nan_stays_in_its_shifts():
    x = volume((1, 2, 4, 3, 3), torch.float32)
    x[0, 1, 2, 1, 1] = torch.nan
    stacked = kernels.stack(x, 5)
    # planes 0 to 3 see plane 2 by shifts of 2 to -1
    found = stacked[0].isnan().nonzero().tolist()
    assert sorted(found) == sorted([[2 * (2 - z + 2) + 1, z, 1, 1] for z in range(4)])


def test_what_it_takes():
    x = volume((2, 16, 4, 5, 6), torch.bfloat16)
    assert kernels.supports(x, 5)
    assert not kernels.supports(x, 4)
    assert not kernels.supports(x.contiguous(), 5)
    assert not kernels.supports(x[:, :8], 5)
    assert not kernels.supports(x[:, :, :0], 5)
    assert not kernels.supports(torch.empty(1, 2048, 2, 2, 2, device=DEVICE).contiguous(memory_format=LAST), 5)
    # one channel has no layout of its own
    assert kernels.supports(torch.empty(2, 1, 4, 5, 6, device=DEVICE), 5)


@pytest.mark.gpu
def test_beyond_32_bits():
    """Offsets of more than 2^31 elements: a volume of 600 MB, and its shifts, 5 GB."""
    x = torch.zeros(1, 32, 18, 512, 1024, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=LAST)
    x[0, :, -1, -1, -1] = torch.arange(32, device="cuda")
    stacked = kernels.stack(x, 9)
    assert stacked.numel() > 2**31
    assert torch.equal(stacked[0, 4 * 32 : 5 * 32, -1, -1, -1], x[0, :, -1, -1, -1])
    assert stacked[0, :, -1].count_nonzero() == 31
