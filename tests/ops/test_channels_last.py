"""Elementwise operations on channels-last tensors of a CPU: the bits of PyTorch's own."""

import pytest
import torch

from vnet_fast.ops import channels_last
from vnet_fast.ops.add_prelu import add_prelu, add_prelu_definition, add_prelu_join

SHAPES = [(2, 8, 4, 5, 6), (1, 16, 3, 3, 1), (1, 1, 2, 3, 4), (2, 3, 1, 1, 7)]


def volume(shape, dtype, seed):
    """Normal numbers, some of which are zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).where(torch.rand(shape, generator=generator) < 0.9, 0)
    return x.to(dtype).contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_layout_are_those_of_pytorch(shape, dtype):
    x, grad = volume(shape, dtype, 0), volume(shape, dtype, 1)
    slope = torch.linspace(-0.5, 1.5, shape[1]).to(dtype)
    wide = slope.view(-1, 1, 1, 1)
    assert channels_last.has_rows(x, grad)
    expected = torch.ops.aten._prelu_kernel_backward(grad, x, wide)
    results = [channels_last.add_channels(x, slope), channels_last.prelu(x, slope)]
    results += channels_last.prelu_gradients(grad, x, slope)
    for found, right in zip(results, [x + wide, torch.nn.functional.prelu(x, slope), *expected], strict=True):
        assert torch.equal(found, right)
        assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_other_tensors_have_no_rows():
    x = volume(SHAPES[0], torch.float32, 0)
    others = [x.contiguous(), x[:, :4], x[0], x[:0], x.to("meta")]
    assert channels_last.has_rows(x)
    assert not any(channels_last.has_rows(other) for other in others)
    assert not channels_last.has_rows(x, others[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_activation_has_the_definitions_bits(dtype, monkeypatch):
    """Without the CPU's kernels, which round once."""
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    x, residual, skip, grad = (volume((2, 8, 4, 5, 6), dtype, seed) for seed in range(4))
    slope, bias = torch.full((8,), 0.25, requires_grad=True), torch.linspace(-1, 1, 8, requires_grad=True)
    for operands in ((x, residual), (x.contiguous(), residual), (x, residual.contiguous())):
        a, b = (operand.clone().requires_grad_() for operand in operands)
        found = add_prelu(a, slope, bias, b)
        assert torch.equal(found, add_prelu_definition(*operands[:1], slope, bias, operands[1]))
        gradients = torch.autograd.grad(found, [a, b, slope, bias], grad)
        c, d = (operand.clone().requires_grad_() for operand in operands)
        z = c + bias.to(dtype).view(-1, 1, 1, 1) + d
        expected = torch.autograd.grad(torch.nn.functional.prelu(z, slope.to(dtype)), [c, d], grad)
        assert torch.equal(gradients[0], expected[0])
        assert torch.equal(gradients[1], expected[1])
        products = torch.ops.aten._prelu_kernel_backward(grad, z, slope.to(dtype).view(-1, 1, 1, 1))
        for gradient, product in zip(gradients[2:], reversed(products), strict=True):
            assert torch.equal(gradient, product.sum((0, 2, 3, 4), dtype=torch.float32))
    joined = add_prelu_join(x, slope, bias, skip)
    assert torch.equal(joined, torch.cat([add_prelu_definition(x, slope, bias, None), skip], 1))
