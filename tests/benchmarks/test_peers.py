import torch

from benchmarks.peers import PlainVNet, dice_loss
from vnet_fast import DiceLoss, VNet


def test_plain_networks_are_ours():
    torch.manual_seed(0)
    model, plain = VNet(), PlainVNet()
    plain.take_weights(model)
    image, target = torch.randn(1, 1, 16, 16, 16), (torch.rand(1, 1, 16, 16, 16) > 0.5).to(torch.uint8)
    with torch.no_grad():
        logits = model(image)
        torch.testing.assert_close(plain(image), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dice_loss(logits, target), DiceLoss.paper()(logits, target))
