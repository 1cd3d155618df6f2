"""PyTorch's default type, which programs set for themselves, changes nothing of networks and kernels of float32."""

import pytest
import torch

from vnet_fast import DiceLoss, VNet
from vnet_fast.nn.folding import folded


@pytest.fixture
def default():
    """Sets PyTorch's default type for the rest of a test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def outputs(model, x, target):
    """Logits with and without gradient, and the gradients of all weights."""
    model.zero_grad()
    logits = model(x)
    DiceLoss(softmax=True, to_onehot_y=True)(logits, target).backward()
    with torch.no_grad():
        return [logits.detach(), model(x), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_networks(default, dtype, norm):
    torch.manual_seed(0)
    model = VNet(base_channels=8, levels=3, norm=norm)
    x, target = torch.randn(2, 1, 16, 16, 32), torch.randint(2, (2, 1, 16, 16, 32))
    model(x)
    expected = outputs(model.eval(), x, target)
    default(dtype)
    found = outputs(model, x, target)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(x), expected[1], rtol=1e-3, atol=1e-3)
