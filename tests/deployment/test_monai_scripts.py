"""The scripts of a MONAI bundle compute what this package does, with PyTorch and MONAI alone."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.volumes import make_image
from vnet_fast import VNet
from vnet_fast.data.channels import Channel
from vnet_fast.deployment import bundle
from vnet_fast.deployment.monai_scripts import cases, vnet
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, probability_on_grid, working_grid
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.task import Task
from vnet_fast.regions import Region, label_table

pytest.importorskip("monai", reason="monai is not installed")
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd

from vnet_fast.deployment.monai_scripts.inferer import WindowInferer
from vnet_fast.deployment.monai_scripts.transforms import NormaliseVolumed, RegionsToLabelsd, ToNetworkGridd

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
TURNED = (0, -1, 0, 0, 0, -1, 1, 0, 0)
SPACING, SIZE = (1.5, 1.5, 2.0), (16, 16, 16)


@pytest.mark.parametrize("topology", ["paper", "caffe"])
@pytest.mark.parametrize("norm", [None, "instance", "group"])
@pytest.mark.parametrize(
    ("channels", "levels", "kernel", "halvings"), [(1, 5, 3, None), (3, 2, 5, None), (1, 4, 3, (1, 3, 2))]
)
def test_the_plain_network_is_ours(topology, norm, channels, levels, kernel, halvings):
    torch.manual_seed(0)
    model = VNet(channels, 3, 4, topology, norm, levels, kernel, halvings).eval()
    plain = vnet.VNet(channels, 3, 4, topology, norm, levels, kernel, halvings).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.normal_()
        plain.load_state_dict(model.state_dict())
        # padded along two axes
        x = torch.randn(2, channels, 16, 9, 18)
        expected = model(x)
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def as_monai(image):
    """A (C, x, y, z) MetaTensor of a SimpleITK image, as MONAI loads it: in the order of NIfTI's axes."""
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = to_ras @ image.GetOrigin()
    values = sitk.GetArrayFromImage(image).T[None]
    return MetaTensor(torch.from_numpy(values.copy()), affine=torch.from_numpy(affine))


def to_network_grid(covering):
    return Compose(
        [
            Orientationd("image", axcodes="SPL", labels=bundle.AXES),
            ToNetworkGridd("image", SPACING[::-1], SIZE[::-1], covering),
        ]
    )


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE, TURNED], ids=["LPS", "oblique", "turned"])
@pytest.mark.parametrize("spacing", [(1.1, 1.3, 2.5), (1.5, 1.5, 2.0)], ids=["other", "equal"])
@pytest.mark.parametrize("covering", [False, True], ids=["centre", "covering"])
def test_to_the_networks_grid_and_back(direction, spacing, covering):
    pytest.importorskip("nibabel", reason="MONAI's orientation needs nibabel, which is not installed")
    size = (26, 11, 23)
    array = np.random.default_rng(0).normal(size=size[::-1]).astype(np.float32)
    image = make_image(array, spacing, (10, -20, 30), direction)
    grid = working_grid(image, SPACING, SIZE)
    if covering:
        grid = working_grid(image, SPACING, covering_size(image, grid))
    transform = to_network_grid(covering)
    found = transform({"image": as_monai(image)})
    expected = image_on_grid(image, grid)
    assert math.isnan(expected.min())
    np.testing.assert_allclose(found["image"][0].numpy(), expected, rtol=0, atol=1e-4)
    # back: what is outside of the network's grid is 0
    values = np.random.default_rng(1).random(grid.shape, np.float32)
    found["image"] = found["image"].clone()
    found["image"][0] = torch.from_numpy(values)
    restored = transform.inverse(found)["image"]
    ours = probability_on_grid(grid.image_from(values), Grid.of(image), 1)
    np.testing.assert_allclose(restored[0].numpy().T, ours, rtol=0, atol=1e-4)
    np.testing.assert_allclose(restored.affine.numpy(), as_monai(image).affine.numpy(), atol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_windows_are_those_of_prediction(sigmoid):
    torch.manual_seed(0)
    model = VNet(1, 2, 2, levels=2).eval()
    image = np.random.default_rng(0).normal(size=(20, 16, 37)).astype(np.float32)
    expected = predict_probabilities(model, image, None, (16, 16, 16), 0.5, overlapping=sigmoid)
    with torch.no_grad():
        found = WindowInferer((16, 16, 16), 0.5, 1 / 8, sigmoid)(MetaTensor(image[None, None]), model)
    # by which MONAI finds the way back
    assert isinstance(found, MetaTensor)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_intensities_are_those_of_training():
    channels = (Channel(), Channel("CT", (-50.0, 200.0, 40.0, 30.0)))
    values = np.random.default_rng(0).normal(50, 60, (2, 9, 8, 7)).astype(np.float32)
    values[:, :2] = math.nan
    task = Task(SPACING, SIZE, channels=channels)
    transform = NormaliseVolumed("image", bundle._preprocessing(task)[-1]["channels"])
    found = transform({"image": MetaTensor(torch.from_numpy(values))})["image"].numpy()
    for ours, theirs, channel in zip(found, values, channels, strict=True):
        np.testing.assert_array_equal(ours, channel.normalised(theirs, theirs))
    with pytest.raises(ValueError, match="needs 2 channels; got 1"):
        transform({"image": MetaTensor(torch.from_numpy(values[:1]))})
    with pytest.raises(ValueError, match="the same value"):
        transform({"image": MetaTensor(torch.ones(2, 3, 3, 3))})


def test_regions_become_labels():
    table = label_table((Region("ball", (1, 2)), Region("right", (2,))))
    inside = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])[:, :, None, None]
    found = RegionsToLabelsd("pred", table.tolist())({"pred": MetaTensor(inside)})["pred"]
    assert found.flatten().tolist() == [0, 1, 2, 2]


def test_cases_of_a_folder(tmp_path):
    for name in ("A_0000.nii.gz", "A_0001.nii.gz", "B.nii.gz", "B_segmentation.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    found = cases.find_images(str(tmp_path), 2)
    assert found == [
        {"image": [str(tmp_path / "A_0000.nii.gz"), str(tmp_path / "A_0001.nii.gz")]},
        {"image": [str(tmp_path / "B.nii.gz")]},
    ]
    meta = {"filename_or_obj": found[0]["image"][0]}
    assert cases.name_mask(meta, None) == {"subject": "A", "idx": None}
    (tmp_path / "A_0002.nii.gz").touch()
    with pytest.raises(ValueError, match="A lacks a channel"):
        cases.find_images(str(tmp_path), 2)
    with pytest.raises(ValueError, match="no volumes"):
        cases.find_images(str(tmp_path.parent), 2)
