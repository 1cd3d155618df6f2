"""The CPU's kernels of activations and normalisation against float64, as operators and on their own."""

import pytest
import torch

from vnet_fast.kernels import cpu_activation as kernels
from vnet_fast.ops import cpu_activation, cpu_library
from vnet_fast.ops.add_prelu import add_prelu, add_prelu_definition, add_prelu_join
from vnet_fast.ops.norm_prelu import norm_prelu, norm_prelu_join
from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition

pytestmark = pytest.mark.skipif(cpu_library.library() is None, reason="the CPU's kernels are not compiled")
LAST = torch.channels_last_3d
TYPES = [torch.float32, torch.bfloat16]
# a voxel, primes, one chunk and one more voxel, several chunks
SHAPES = [(1, 8, 1, 1, 1), (2, 16, 3, 5, 7), (1, 24, 8, 8, 8), (2, 8, 1, 27, 19), (1, 16, 9, 20, 21)]
RESIDUALS = ["none", "one channel", "full"]
# of the norm: sums and values in float32, each rounded once to the type of memory
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def volumes(shape, dtype, residual="full", seed=0):
    """x, grad_y, slope, bias, residual."""
    generator = torch.Generator().manual_seed(seed)
    channels = {"none": 0, "one channel": 1, "full": shape[1]}[residual]
    x, grad, added = (
        torch.randn(shape[0], c, *shape[2:], generator=generator).to(dtype).contiguous(memory_format=LAST)
        for c in (shape[1], shape[1], channels)
    )
    slope, bias = torch.linspace(-0.5, 0.75, shape[1]), torch.linspace(-1, 1, shape[1])
    slope[0] = 0
    return x, grad, slope, bias, added if channels else None


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm().clamp(min=1e-30)).item()


def doubles(*tensors):
    return [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]


def compare(function, definition, tensors, grad, dtype):
    """Outputs and all gradients of an operator with those of its definition in float64."""
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    exact_leaves = doubles(*tensors)
    y, exact = function(*leaves), definition(*exact_leaves)
    assert y.dtype == dtype
    there = [i for i, leaf in enumerate(leaves) if leaf is not None]
    found = torch.autograd.grad(y, [leaves[i] for i in there], grad.to(dtype))
    wanted = torch.autograd.grad(exact, [exact_leaves[i] for i in there], grad.double())
    for result, reference in zip((y, *found), (exact, *wanted), strict=True):
        assert error(result.detach(), reference.detach()) <= TOLERANCES[dtype]


@pytest.fixture(autouse=True)
def _taken(monkeypatch):
    """Fails if the definition runs instead."""
    taken, original = [], cpu_activation.takes
    monkeypatch.setattr(cpu_activation, "takes", lambda x: taken.append(original(x)) or taken[-1])
    yield
    assert all(taken)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_prelu(shape, residual, dtype):
    x, grad, slope, bias, added = volumes(shape, dtype, residual)
    compare(add_prelu, add_prelu_definition, (x, slope, bias, added), grad, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sets", ["instance", "batch", "group"])
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_norm_prelu(shape, residual, sets, dtype):
    x, grad, slope, bias, added = volumes(shape, dtype, residual)
    weight = torch.linspace(0.5, -1.5, shape[1])
    groups = {"instance": shape[1], "batch": shape[1], "group": 8}[sets]
    sets = Sets(groups, sets == "batch", 1e-5)
    compare(
        lambda *given: norm_prelu(*given, sets)[0],
        lambda *given: norm_prelu_definition(*given, sets),
        (x, weight, bias, slope, added),
        grad,
        dtype,
    )


@pytest.mark.parametrize("norm", [False, True])
def test_a_join_is_written_in_place_and_its_gradient_read_there(norm):
    x, _, slope, bias, skip = volumes((2, 16, 3, 5, 7), torch.float32)
    grad = torch.randn(2, 32, 3, 5, 7).contiguous(memory_format=LAST)
    sets, weight = Sets(16, False, 1e-5), torch.linspace(0.5, -1.5, 16)

    def join(x, weight, bias, slope, skip):
        if norm:
            return norm_prelu_join(x, weight, bias, slope, skip, sets)[0]
        return add_prelu_join(x, slope, bias + 0 * weight, skip)

    def definition(x, weight, bias, slope, skip):
        y = norm_prelu_definition(x, weight, bias, slope, None, sets) if norm else None
        return torch.cat([add_prelu_definition(x, slope, bias + 0 * weight, None) if y is None else y, skip], 1)

    compare(join, definition, (x, weight, bias, slope, skip), grad, torch.float32)


@pytest.mark.parametrize("offset", [0, 1e4])
def test_statistics_are_as_exact_as_the_spread_allows(widest, offset):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 16, 16, 40, 40, generator=generator) + offset).contiguous(memory_format=LAST)
    mean, squares = kernels.statistics(widest, x)
    exact = x.double()
    assert torch.allclose(mean, exact.mean((2, 3, 4)), rtol=0, atol=3e-7)
    variance = exact.var((2, 3, 4), correction=0)
    assert torch.allclose(squares / x[0, 0].numel(), variance, rtol=1e-6)


def test_normalising_a_large_mean_loses_no_more_than_its_rounding():
    x, _, slope, bias, _ = volumes((1, 16, 9, 20, 21), torch.float32)
    # float32 holds these exactly, but not their mean
    x, sets, weight = (x * 64).round() / 64 + 4096, Sets(16, False, 1e-5), torch.ones(16)
    y = norm_prelu(x, weight, bias, slope, None, sets)[0]
    exact = norm_prelu_definition(x.double(), weight.double(), bias.double(), slope.double(), None, sets)
    rounding = 4096 * torch.finfo(torch.float32).eps / 2
    assert (y - exact).abs().max() <= 1.1 * rounding


def test_all_builds_give_the_same_within_rounding(library):
    x, grad, slope, bias, added = volumes((2, 24, 3, 20, 21), torch.float32)
    shift = bias.expand(2, -1).contiguous()
    y = kernels.activate(library, x, slope, shift=shift, residual=added)
    exact = add_prelu_definition(x.double(), slope.double(), bias.double(), added.double())
    assert error(y, exact) <= TOLERANCES[torch.float32]
    grad_z, sums = kernels.activate_backward(library, grad, x, slope, shift=shift, residual=added)
    z = x.double() + bias.double().reshape(-1, 1, 1, 1) + added.double()
    exact = torch.where(z > 0, grad.double(), grad.double() * slope.double().reshape(-1, 1, 1, 1))
    assert error(grad_z, exact) <= TOLERANCES[torch.float32]
    wanted = (exact, exact * x.double(), torch.where(z > 0, 0.0, grad.double() * z))
    assert error(sums, torch.stack([each.sum((2, 3, 4)) for each in wanted], 1)) <= 1e-5


def test_the_same_bits_for_any_number_of_threads(widest, threads):
    x, grad, slope, _, added = volumes((2, 16, 9, 20, 21), torch.float32)
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(
            (*kernels.activate_backward(widest, grad, x, slope, residual=added), *kernels.statistics(widest, x))
        )
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, results[0], strict=True))


def test_nan_is_not_lost(widest):
    x, grad, slope, _, _ = volumes((1, 16, 3, 5, 7), torch.float32)
    x[0, 3, 1, 1, 1] = float("nan")
    assert kernels.activate(widest, x, slope)[0, 3, 1, 1, 1].isnan()
    _, sums = kernels.activate_backward(widest, grad, x, slope)
    assert sums[0, 2, 3].isnan()
    assert kernels.statistics(widest, x)[0][0, 3].isnan()


def test_a_second_derivative_is_that_of_the_definition():
    x, _, slope, bias, _ = volumes((1, 8, 2, 3, 4), torch.float32)
    x, slope = x.requires_grad_(), slope.requires_grad_()

    def second(function):
        (grad,) = torch.autograd.grad(function(x, slope, bias, None).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, slope))

    for found, wanted in zip(second(add_prelu), second(add_prelu_definition), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


def test_what_is_supported():
    x = volumes((2, 16, 3, 5, 7), torch.float32)[0]
    assert kernels.supports(x)
    assert not any(map(kernels.supports, (x.contiguous(), x.half(), x[:, :8], x[:0], x.to("meta"), x[0])))
    assert kernels.row_stride(x) == 16
    assert kernels.row_stride(x[:, :8]) == 16
    assert kernels.row_stride(x[:1, 8:]) == 16
    assert kernels.row_stride(x.contiguous()) is None
    assert kernels.row_stride(x[..., :3]) is None
    assert kernels.row_stride(torch.zeros(1).expand(2, 16, 3, 5, 7)) is None
