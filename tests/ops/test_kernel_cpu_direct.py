"""The CPU's direct sums of small volumes against float64, as compiled for each set of instructions."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_kernel_cpu_convolution import LAST, case, error, exact_results
from vnet_fast.kernels import cpu_direct as kernels
from vnet_fast.ops import cpu_library

pytestmark = pytest.mark.skipif(cpu_library.library() is None, reason="the CPU's kernels are not compiled")
# (N, C, K, D, H, W): a voxel, a row, primes, a slice, more voxels than a product has rows, each kind of panel
SHAPES = [
    (1, 8, 8, 1, 1, 1),
    (1, 16, 8, 1, 1, 9),
    (2, 8, 16, 7, 5, 3),
    (3, 24, 40, 1, 6, 5),
    (1, 16, 136, 4, 8, 8),
    (2, 64, 32, 2, 4, 4),
]
TAPS = [3, 5]


def results(library, x, weight, grad):
    """Output, and the gradients of input and weight."""
    y, grad_x = kernels.convolve(library, x, weight), kernels.convolve(library, grad, weight, mirrored=True)
    return y, grad_x, kernels.weight_gradient(library, x, grad, weight.shape[2])


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(library, shape, taps):
    """Within twice the error of PyTorch's."""
    x, weight, grad = case(shape, taps=taps)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    plain = F.conv3d(*leaves, None, 1, taps // 2)
    theirs = plain.detach(), *torch.autograd.grad(plain, leaves, grad)
    for ours, other, exact in zip(
        results(library, x, weight, grad), theirs, exact_results(x, weight, grad), strict=True
    ):
        assert ours.shape == exact.shape
        assert ours.is_contiguous(memory_format=LAST)
        assert error(ours, exact) <= 2 * error(other, exact) + 2e-7


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=str)
def test_half_precision_in_memory_is_rounded_once(library, shape, taps):
    x, weight, grad = case(shape, torch.bfloat16, taps)
    y, grad_x, grad_weight = results(library, x, weight, grad)
    exact, exact_x, exact_weight = exact_results(x, weight, grad)
    eps = torch.finfo(torch.bfloat16).eps
    for result, wanted in ((y, exact), (grad_x, exact_x)):
        assert result.dtype == torch.bfloat16
        # a result that is near the middle of two may go either way
        assert (result != wanted.to(torch.bfloat16)).float().mean() < 0.01
        assert (result.double() - wanted).abs().max() <= eps * wanted.abs().max()
    assert error(grad_weight, exact_weight) <= 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_epilogue(library, dtype):
    x, weight, residual = case(SHAPES[2], dtype)
    k = len(weight)
    bias, slope = torch.linspace(-1, 1, k), torch.linspace(-0.5, 0.5, k)
    negative = torch.full((residual.numel() // 8,), 255, dtype=torch.uint8)
    y = kernels.convolve(library, x, weight, bias, residual, slope, negative)
    z = F.conv3d(x.double(), weight.double(), bias.double(), 1, 2) + residual.double()
    assert error(y, torch.where(z > 0, z, z * slope.double().reshape(-1, 1, 1, 1))) <= 4 * torch.finfo(dtype).eps
    bits = ((negative[:, None] >> torch.arange(8)) & 1).bool().reshape(x.shape[0], *x.shape[2:], k)
    assert ((bits.permute(0, 4, 1, 2, 3) != (z <= 0)) & (z.abs() > 1e-4)).sum() == 0


def test_the_bits_do_not_depend_on_the_threads(library):
    x, weight, grad = case((2, 64, 16, 4, 5, 6))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 16):
            torch.set_num_threads(threads)
            found.append(results(library, x, weight, grad))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], others, strict=True))


def test_every_number_is_written(library, monkeypatch):
    """Also those of taps that no voxel has."""
    x, weight, grad = case((1, 16, 8, 1, 2, 3))
    expected, empty = results(library, x, weight, grad), torch.empty

    def poisoned(*arguments, **others):
        return empty(*arguments, **others).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poisoned)
    for ours, wanted in zip(results(library, x, weight, grad), expected, strict=True):
        assert torch.equal(ours, wanted)
    assert (expected[2] == 0).any()
