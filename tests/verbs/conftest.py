"""What the tests of several verbs share: a trained network."""

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.run import checkpoint


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a network that calls what is 1.2 standard deviations brighter than the mean."""
    model = VNet(base_channels=2, num_classes=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        # the residuals carry the input through the first stage and over the last skip
        for module in model.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.fill_(1)
        model.head.weight[1, 2:] = 1
        model.head.bias[1] = -2 * 1.2
    path = tmp_path / "bright.pt"
    checkpoint.save(path, model, spacing=[1.5, 1.5, 2.0], volume=[16, 16, 16], validation=["Case01", "Case04"])
    return path
