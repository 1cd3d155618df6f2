"""A training loop of MONAI's parts, in which only the import of the loss differs."""

import monai.losses
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.networks.nets import UNet
from monai.transforms import Compose, NormalizeIntensityd, RandFlipd, ToTensord
from monai.utils import set_determinism

import vnet_fast

NETWORKS = {
    "MONAI's UNet": lambda: UNet(3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)),
    "our VNet": lambda: vnet_fast.VNet(base_channels=2),
}
ARGUMENTS = {
    "MONAI's example": {"to_onehot_y": True, "softmax": True},
    "paper": {"include_background": False, "to_onehot_y": True, "softmax": True, "squared_pred": True, "batch": True},
}


def cases(count=4, size=16):
    """Bright balls in noise, as the dicts that MONAI's transforms take; MetaTensors, as LoadImaged makes."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(size)] * 3, indexing="ij"))
    for _ in range(count):
        centre = size / 2 + 3 * torch.rand(3, generator=generator)
        label = ((grid - centre.view(3, 1, 1, 1)).square().sum(0, keepdim=True) < 16).float()
        image = label + 0.5 * torch.randn(label.shape, generator=generator)
        yield {"image": MetaTensor(image), "label": MetaTensor(label)}


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def train(loss, make_network, epochs=2):
    """Trains as MONAI's tutorials do.

    Returns:
        the loss of each iteration, and the weights at the start and at the end, each as a vector.
    """
    set_determinism(0)
    transform = Compose(
        [
            NormalizeIntensityd("image"),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=2),
            ToTensord(["image", "label"], track_meta=True),
        ]
    )
    loader = DataLoader(Dataset(list(cases()), transform), batch_size=2, shuffle=True)
    model = make_network()
    start = weights_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(epochs):
        for batch in loader:
            assert isinstance(batch["label"], MetaTensor)
            optimizer.zero_grad()
            value = loss(model(batch["image"]), batch["label"])
            value.backward()
            optimizer.step()
            losses.append(value.item())
    set_determinism(None)
    return torch.tensor(losses), start, weights_of(model)


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("MONAI's UNet", "MONAI's example"),
        ("our VNet", "paper"),
        pytest.param("MONAI's UNet", "paper", marks=pytest.mark.exhaustive),
        pytest.param("our VNet", "MONAI's example", marks=pytest.mark.exhaustive),
    ],
)
def test_training_is_monais_with_another_import(network, arguments):
    make_network, arguments = NETWORKS[network], ARGUMENTS[arguments]
    losses, start, end = train(vnet_fast.DiceLoss(**arguments), make_network)
    expected_losses, expected_start, expected_end = train(monai.losses.DiceLoss(**arguments), make_network)
    assert losses[0] != losses[-1]
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert torch.equal(start, expected_start)
    # of what was learnt: rounding decides on which side of zero an activation lies, and so between two slopes
    assert (end - expected_end).norm() <= 1e-3 * (end - start).norm()
