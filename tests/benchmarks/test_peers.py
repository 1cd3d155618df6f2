import pytest
import torch

from benchmarks.peers import PlainVNet, dice_loss
from vnet_fast import DiceLoss, VNet


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_classes": 2, "base_channels": 8, "norm": "batch", "levels": 4, "kernel_size": 3}],
    ids=["paper", "fast"],
)
def test_plain_networks_are_ours(arguments, monkeypatch):
    # minimal filtering has a rounding error of its own, which its own tests bound; here both convolve alike
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    torch.manual_seed(0)
    model, plain = VNet(**arguments), PlainVNet(**arguments)
    plain.take_weights(model)
    image, target = torch.randn(1, 1, 16, 16, 16), (torch.rand(1, 1, 16, 16, 16) > 0.5).to(torch.uint8)
    with torch.no_grad():
        logits = model(image)
        torch.testing.assert_close(plain(image), logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(dice_loss(logits, target), DiceLoss.paper()(logits, target))
