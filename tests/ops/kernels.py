"""What the tests of the kernels share: where they run, and tensors that show stray reads."""

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the kernels run in Triton's interpreter (tests/conftest.py)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, marks=pytest.mark.exhaustive, id="float16"),
    pytest.param(torch.bfloat16, id="bfloat16"),
]
# of a module of kernel tests
MARKS = [pytest.mark.usefixtures("poisoned_memory", "rounded_to_nearest")] + [pytest.mark.gpu] * (DEVICE == "cuda")


def surrounded(tensor):
    """A copy between two entries of NaN, or of the largest number, which nothing may read."""
    if tensor.is_floating_point():
        edge = torch.nan
    else:
        edge = 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    padding = torch.full_like(tensor[:1], edge)
    return torch.cat([padding, tensor, padding])[1:-1]
