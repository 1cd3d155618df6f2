"""Hooks on the layers of a network, which fused operations would pass by."""

import copy

import pytest
import torch
from torch import nn

from vnet_fast import VNet

KINDS = [None, "instance", "group", "batch"]
KINDS_OF_LAYERS = nn.Conv3d | nn.ConvTranspose3d | nn.PReLU


@pytest.fixture
def model():
    torch.manual_seed(0)

    def make(norm):
        model = VNet(base_channels=8, levels=3, norm=norm)
        model(torch.randn(2, 1, 16, 16, 16))
        return model.eval()

    return make


def gradients(model, x):
    model.zero_grad()
    logits = model(x)
    logits.square().mean().backward()
    return [logits.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("norm", KINDS, ids=str)
def test_every_layer_is_called_and_nothing_else_changes(model, norm):
    model, x, seen = model(norm).double(), torch.randn(1, 1, 16, 16, 16, dtype=torch.float64), {}
    expected = gradients(model, x)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, KINDS_OF_LAYERS)}
    handles = [
        layer.register_forward_hook(lambda layer, given, y, name=name: seen.update({name: y.shape[1]}))
        for name, layer in layers.items()
    ]
    found = gradients(model, x)
    assert seen.keys() == layers.keys()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(*pair) for pair in zip(gradients(model, x), expected, strict=True))


@pytest.mark.parametrize("change", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight", "spectral"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_hooks_compute_are_trained(model, change):
    model, x = model(None), torch.randn(1, 1, 16, 16, 16)
    layer = model.left[1].layers[0].convolution
    change(layer)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    name = "weight_v" if change is nn.utils.weight_norm else "weight_orig"
    assert not torch.equal(getattr(layer, name), before[f"left.1.layers.0.convolution.{name}"])
