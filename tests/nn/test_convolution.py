import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vnet_fast.devices import cpu_has_convolutions
from vnet_fast.nn.convolution import convolve
from vnet_fast.ops import onednn


def layer(channels=6, kernel_size=5, dtype=torch.float32):
    torch.manual_seed(0)
    convolution = nn.Conv3d(channels, channels + 2, kernel_size, padding=kernel_size // 2)
    return convolution.to(dtype, memory_format=torch.channels_last_3d)


def volume(size, channels=6, n=2, dtype=torch.float32):
    x = torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()


def gradients(y, x, convolution):
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return torch.autograd.grad(y, [x, convolution.weight, convolution.bias], grad_y)


# the first ones smaller than the kernel along some axis
SIZES = [(1, 1, 1), (2, 4, 4), (4, 8, 8), (4, 5, 7), (9, 3, 2), (6, 6, 6)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients_are_the_convolutions(size, dtype):
    """Against float64, within twice PyTorch's own error; in bfloat16, where that is the fault itself,
    within twice the rounding of the exact results.
    """
    convolution, x = layer(dtype=dtype), volume(size, dtype=dtype)
    y, left = convolve(convolution, x)
    assert left is None
    exact, exact_x = layer().double(), x.detach().double().requires_grad_()
    exact.load_state_dict({name: value.double() for name, value in convolution.state_dict().items()})
    expected = F.conv3d(exact_x, exact.weight, exact.bias, 1, 2)
    plain = F.conv3d(x, convolution.weight, convolution.bias, 1, 2)
    results = [
        (result, *gradients(result, *leaves))
        for result, leaves in ((y, (x, convolution)), (plain, (x, convolution)), (expected, (exact_x, exact)))
    ]
    for ours, pytorchs, reference in zip(*results, strict=True):
        assert ours.dtype == dtype
        allowed = 2 * torch.finfo(dtype).eps * reference.norm()
        if dtype == torch.float32:
            allowed += 2 * (pytorchs.double() - reference).norm()
        assert (ours.double() - reference).norm() <= allowed
    assert gradients(*[convolve(convolution, x)[0], x, convolution])[1].stride() == convolution.weight.stride()


@pytest.mark.parametrize("size", [(4, 8, 9), (9, 2, 3), (3, 2, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_gathered_in_pieces(monkeypatch, size, dtype):
    """Of thin but large volumes, which would take 125 times their memory."""
    x, grad_y = (torch.randn(2, channels, *size).to(dtype) for channels in (3, 4))
    shape, pieces = torch.Size((4, 3, 5, 5, 5)), []
    whole = onednn.gathered_weight_gradient(x, grad_y, shape)
    monkeypatch.setattr(onednn, "GATHERED", x.numel() * 125 // 3)
    matmul = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: pieces.append(b.numel()) or matmul(a, b))
    found = onednn.gathered_weight_gradient(x, grad_y, shape)
    assert len(pieces) > 1
    assert max(pieces) <= onednn.GATHERED
    assert (found.dtype, found.shape) == (dtype, shape)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, whole, rtol=0, atol=tolerance * whole.abs().max().item())


@pytest.mark.parametrize("size", [(2, 4, 4), (6, 6, 6)], ids=str)
def test_autocast_is_followed(size):
    convolution, x = layer(), volume(size)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = convolve(convolution, x)
        expected = F.conv3d(x, convolution.weight, convolution.bias, 1, 2)
    assert y.dtype == expected.dtype == torch.bfloat16
    if cpu_has_convolutions(torch.bfloat16):
        assert torch.equal(y, expected)
    else:
        # ours is computed in float32 and rounded once
        assert (y - expected).norm() <= 2 * torch.finfo(y.dtype).eps * expected.norm()
    assert [grad.dtype for grad in gradients(y, x, convolution)] == [torch.float32] * 3


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_only_what_is_needed_gets_a_gradient(which):
    convolution, x = layer(), volume((2, 4, 4))
    leaves = {"x": x, "weight": convolution.weight, "bias": convolution.bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == which)
    convolve(convolution, x)[0].sum().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [which]


def test_strides_and_transposed_convolutions_are_pytorchs():
    x = volume((2, 4, 4))
    for convolution, function in (
        (nn.Conv3d(6, 4, 2, stride=2), lambda c: F.conv3d(x, c.weight, c.bias, 2)),
        (nn.Conv3d(6, 4, 1), lambda c: F.conv3d(x, c.weight, c.bias)),
        (nn.ConvTranspose3d(6, 4, 2, stride=2), lambda c: F.conv_transpose3d(x, c.weight, c.bias, 2)),
    ):
        assert torch.equal(convolve(convolution, x)[0], function(convolution))


def test_a_gradient_of_the_gradient_is_refused():
    convolution, x = layer(), volume((2, 4, 4))
    (grad,) = torch.autograd.grad(convolve(convolution, x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
