"""The operator of normalisation + residual + PReLU: definition, gradients, registration and dispatch."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from tests.ops.test_operators import volume
from vnet_fast.ops.norm_prelu import norm_prelu, norm_prelu_join
from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition, statistics
from vnet_fast.ops.prelu import prelu, prelu_gradients

CHANNELS = 8
SETS = {
    "instance": Sets(CHANNELS, False, 1e-5),
    "batch": Sets(CHANNELS, True, 1e-5),
    "group": Sets(2, False, 1e-5),
}
RESIDUALS = {"plain": None, "residual": CHANNELS, "one channel": 1}


def arguments(form="residual", dtype=torch.float64, shape=(2, 3, 3)):
    channels = RESIDUALS[form]
    vectors = [
        torch.linspace(low, high, CHANNELS, dtype=dtype).requires_grad_()
        for low, high in ((-1.5, 2), (-1, 1), (-0.2, 0.5))
    ]
    x = (volume(2, CHANNELS, *shape, dtype=dtype) * 2 + 3).detach().requires_grad_()
    residual = None if channels is None else volume(2, channels, *shape, dtype=dtype, seed=2, requires_grad=True)
    return x, *vectors, residual


@pytest.mark.parametrize("form", RESIDUALS)
@pytest.mark.parametrize("kind", SETS)
def test_operator_and_gradients_are_the_definition(kind, form):
    inputs = arguments(form)
    leaves = [tensor for tensor in inputs if tensor is not None]
    y, (mean, variance) = norm_prelu(*inputs, SETS[kind])
    expected = norm_prelu_definition(*inputs, SETS[kind])
    torch.testing.assert_close(y, expected)
    assert y.stride() == inputs[0].stride()
    values = inputs[0].unflatten(1, (SETS[kind].groups, -1)).movedim(1, 0).flatten(2)
    values = values.flatten(1)[None] if kind == "batch" else values.transpose(0, 1)
    torch.testing.assert_close(mean, values.mean(-1))
    torch.testing.assert_close(variance, values.var(-1, correction=0))
    factor = volume(*y.shape, dtype=y.dtype, seed=5)
    found, wanted = (torch.autograd.grad((out * factor).sum(), leaves) for out in (y, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize(("dtype", "mean"), [(torch.float32, 1e4), (torch.bfloat16, 30.0)], ids=str)
def test_statistics_of_values_far_from_zero(kind, dtype, mean):
    """Of several pieces. Of PyTorch's own, the variance is wrong by 1e-4 and more."""
    x = (volume(2, CHANNELS, 16, 32, 40) + mean).to(dtype)
    found = statistics(x, SETS[kind])
    exact = statistics(x.double(), SETS[kind])
    assert found[0].dtype == torch.float32
    assert (found[0] - exact[0]).abs().max() <= 1e-7 * mean
    assert (found[1] / exact[1] - 1).abs().max() <= 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", SETS)
def test_gradcheck(kind):
    inputs = arguments("residual", shape=(1, 2, 2))
    assert gradcheck(lambda *tensors: norm_prelu(*tensors, SETS[kind])[0], inputs)


@pytest.mark.parametrize("kind", SETS)
def test_join_is_a_concatenation(kind):
    *inputs, skip = arguments()
    leaves = [*inputs, skip]
    joined = norm_prelu_join(*inputs, skip, SETS[kind])[0]
    expected = torch.cat([norm_prelu_definition(*inputs, None, SETS[kind]), skip], 1)
    torch.testing.assert_close(joined, expected)
    assert joined.is_contiguous(memory_format=torch.channels_last_3d)
    factor = volume(*joined.shape, dtype=joined.dtype, seed=5)
    found, wanted = (torch.autograd.grad((out * factor).sum(), leaves) for out in (joined, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


# the symbolic shapes of the dynamic test can't be given to the interpreter
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("form", ["one channel", pytest.param("residual", marks=pytest.mark.exhaustive)])
def test_opcheck(form):
    opcheck(torch.ops.vnet_fast.norm_prelu.default, (*arguments(form, torch.float32), *SETS["group"]))


def test_opcheck_through_the_kernels(through_kernels):
    inputs = arguments("residual", torch.float32, (1, 2, 3))
    opcheck(torch.ops.vnet_fast.norm_prelu_join.default, (*inputs, *SETS["batch"]), test_utils=TESTS)
    detached = [tensor.detach() for tensor in inputs]
    y, *statistics = torch.ops.vnet_fast.norm_prelu(*detached, *SETS["batch"])
    backward = torch.ops.vnet_fast.norm_prelu_backward.default
    opcheck(backward, (y, *detached, *statistics, *SETS["batch"], True), test_utils=TESTS)


@pytest.mark.parametrize(
    ("kind", "form"), [("batch", "residual"), pytest.param("group", "one channel", marks=pytest.mark.exhaustive)]
)
def test_gradients_through_the_kernels(through_kernels, kind, form):
    inputs = arguments(form, torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    y, expected = norm_prelu(*inputs, SETS[kind])[0], norm_prelu_definition(*exact, SETS[kind])
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    factor = volume(*y.shape, seed=5)
    found = torch.autograd.grad((y * factor).sum(), inputs)
    wanted = torch.autograd.grad((expected * factor.double()).sum(), exact)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 8, 20, 96])
def test_fast_prelu_has_pytorchs_bits(channels, dtype):
    """For rows that are put together and rows that are not, in every layout."""
    for spatial, layout in (
        ((4, 4, 8), torch.channels_last_3d),
        ((3, 5, 7), torch.channels_last_3d),
        ((2, 4, 8), None),
    ):
        z, grad = (torch.randn(2, channels, *spatial).to(dtype) for _ in range(2))
        if layout:
            z, grad = (tensor.contiguous(memory_format=layout) for tensor in (z, grad))
        slope = torch.randn(channels).to(dtype)
        y = prelu(z, slope)
        assert torch.equal(y, torch.nn.functional.prelu(z, slope))
        assert y.stride() == z.stride()
        grad_z, grad_slope = prelu_gradients(grad, z, slope)
        expected_z, terms = torch.ops.aten._prelu_kernel_backward(grad, z, slope.reshape(-1, 1, 1, 1))
        assert torch.equal(grad_z, expected_z)
        assert torch.equal(grad_slope, terms.sum((0, 2, 3, 4), dtype=torch.float32))
