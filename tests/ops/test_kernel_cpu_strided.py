"""The CPU's kernels of stride 2 against float64, as compiled for each set of instructions, and as operators."""

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vnet_fast.kernels import cpu_strided as kernels
from vnet_fast.nn import convolution as nn_convolution
from vnet_fast.ops import cpu_library, cpu_strided
from vnet_fast.ops.add_prelu import add_prelu_definition

pytestmark = pytest.mark.skipif(cpu_library.library() is None, reason="the CPU's kernels are not compiled")
LAST = torch.channels_last_3d
TYPES = [torch.float32, torch.bfloat16]
# (N, C, K, D, H, W) of the coarse volume: a voxel, primes, a chunk and one more voxel, each kind of panel
SHAPES = [(1, 8, 16, 1, 1, 1), (2, 16, 8, 3, 2, 5), (1, 24, 40, 1, 7, 7), (1, 8, 8, 2, 4, 6), (1, 32, 64, 3, 5, 7)]


def case(shape, dtype=torch.float32):
    """Fine and coarse volume, weight, biases of the coarse and of the fine channels."""
    n, c, k, *size = shape
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (
        torch.randn(n, channels, *lengths, generator=generator).to(dtype).contiguous(memory_format=LAST)
        for channels, lengths in ((c, [2 * length for length in size]), (k, size))
    )
    weight = torch.randn(k, c, 2, 2, 2, generator=generator).contiguous(memory_format=LAST) / (8 * c) ** 0.5
    return fine, coarse, weight, torch.linspace(-1, 1, k), torch.linspace(-1, 1, c)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def slope_of(bias):
    return torch.linspace(-0.5, 0.75, len(bias))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_directions_and_the_weights_gradient(library, shape, dtype):
    fine, coarse, weight, bias, fine_bias = case(shape, dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    exact = fine.double(), coarse.double(), weight.double()
    gathered = F.conv3d(exact[0], exact[2], bias.double(), 2)
    scattered = F.conv_transpose3d(exact[1], exact[2], fine_bias.double(), 2)
    assert error(kernels.gather(library, fine, weight, bias), gathered) <= tolerance
    assert error(kernels.scatter(library, coarse, weight, fine_bias), scattered) <= tolerance
    for found, plain, numbers in (
        (kernels.gather(library, fine, weight, bias, slope_of(bias)), gathered, bias),
        (kernels.scatter(library, coarse, weight, fine_bias, slope_of(fine_bias)), scattered, fine_bias),
    ):
        assert found.is_contiguous(memory_format=LAST)
        activated = add_prelu_definition(plain, slope_of(numbers).double(), None, None)
        assert error(found, activated) <= tolerance
    exact_weight = exact[2].requires_grad_()
    (wanted,) = torch.autograd.grad(F.conv3d(exact[0], exact_weight, None, 2), exact_weight, exact[1])
    found = kernels.weight_gradient(library, fine, coarse)
    assert found.is_contiguous(memory_format=LAST)
    assert error(found, wanted) <= 1e-6


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_operator_and_its_gradients(transposed, dtype):
    fine, coarse, weight, bias, fine_bias = case(SHAPES[1], dtype)
    x, bias = (coarse, fine_bias) if transposed else (fine, bias)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    exact_leaves = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y = cpu_strided.convolve(*leaves, transposed)
    exact = (F.conv_transpose3d if transposed else F.conv3d)(*exact_leaves, 2)
    grad = torch.randn_like(exact)
    found, wanted = torch.autograd.grad(y, leaves, grad.to(dtype)), torch.autograd.grad(exact, exact_leaves, grad)
    for result, reference, leaf in zip((y, *found), (exact, *wanted), (x, *leaves), strict=True):
        assert result.dtype == leaf.dtype
        assert error(result.detach(), reference.detach()) <= (1e-6 if dtype == torch.float32 else 8e-3)


def test_opcheck():
    fine, coarse, weight, bias, _ = case(SHAPES[3])
    opcheck(torch.ops.vnet_fast.cpu_strided, (fine.requires_grad_(), weight.requires_grad_(), bias, None, False))
    opcheck(torch.ops.vnet_fast.cpu_strided, (coarse.requires_grad_(), weight, None, None, True))
    with torch.no_grad():
        operands = coarse.detach(), fine.detach(), weight.detach()
        opcheck(torch.ops.vnet_fast.cpu_strided, (fine.detach(), weight.detach(), bias, slope_of(bias), False))
        opcheck(torch.ops.vnet_fast.cpu_strided_backward, (*operands, False, True, False))


def test_a_slope_has_no_gradient():
    fine, _, weight, bias, _ = case(SHAPES[3])
    with pytest.raises(RuntimeError, match="no gradient with a slope"):
        cpu_strided.convolve(fine.requires_grad_(), weight, bias, False, slope_of(bias))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_is_taken_and_its_activation_with_it(transposed, monkeypatch):
    layer = (torch.nn.ConvTranspose3d if transposed else torch.nn.Conv3d)(8, 16, 2, 2)
    x, slope = torch.randn(1, 8, 4, 4, 6), torch.linspace(-0.5, 0.75, 16)
    expected = F.prelu(layer(x), slope)
    ran, original = [], kernels.scatter if transposed else kernels.gather
    name = "scatter" if transposed else "gather"
    monkeypatch.setattr(kernels, name, lambda *given: ran.append(given[4]) or original(*given))
    y = nn_convolution.convolve_prelu(layer, x, slope)
    with torch.no_grad():
        predicted = nn_convolution.convolve_prelu(layer, x, slope)
    assert torch.allclose(y, expected, atol=1e-5)
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert [given is not None for given in ran] == [False, True]


def test_the_same_bits_for_the_same_threads(widest, threads):
    fine, coarse, weight, _, bias = case((1, 16, 32, 5, 6, 7))
    outputs = []
    for count in (1, 2, 5):
        threads(count)
        runs = [kernels.weight_gradient(widest, fine, coarse) for _ in range(3)]
        assert all(torch.equal(run, runs[0]) for run in runs)
        outputs.append((kernels.gather(widest, fine, weight), kernels.scatter(widest, coarse, weight, bias)))
    # of an output the sums are those of one thread
    assert all(torch.equal(*pair) for output in outputs for pair in zip(output, outputs[0], strict=True))


def test_what_is_supported():
    fine, coarse, weight, *_ = case(SHAPES[1])
    assert kernels.supports(fine, weight, False)
    assert kernels.supports(coarse, weight, True)
    assert not kernels.supports(fine[:, :, 1:], weight, False)
    assert not kernels.supports(fine.half(), weight, False)
    assert not kernels.supports(coarse, weight, False)
    assert not kernels.supports(fine, weight, True)
    assert not kernels.supports(fine, weight.bfloat16(), False)
    assert not kernels.supports(fine[:, :4], weight[:, :4], False)
    assert not kernels.supports(fine, weight[..., :1], False)
    layer = torch.nn.Conv3d(16, 8, 2, 2, padding=1)
    assert not nn_convolution._is_strided(layer, fine)
