"""What the tests of the interface share."""

import pytest

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")

import SimpleITK as sitk
import torch

from tests.verbs.conftest import trained
from tests.volumes import make_image, write_case
from vnet_fast import Segmenter, VNet
from vnet_fast.run import checkpoint

__all__ = ["trained"]
TINY = {"volume": (16, 16, 16), "spacing": (1.5, 1.5, 2), "base_channels": 2, "device": "cpu", "folds": 3}


@pytest.fixture
def segmenter(trained):
    return Segmenter.load(trained, device="cpu")


@pytest.fixture
def case(tmp_path):
    """The file of a volume with a bright ball, and that of its mask."""
    return write_case(tmp_path, "case", suffix=".nii.gz")


@pytest.fixture
def random_network(tmp_path):
    """Writes a checkpoint of a network with random weights; its arguments are those of VNet, and what it says."""

    def write(name="random.pt", network=None, **description):
        torch.manual_seed(0)
        model = VNet(base_channels=2, **(network or {}))
        grid = {"spacing": [1.5, 1.5, 2.0], "volume": [16, 16, 16], "validation": []}
        checkpoint.save(tmp_path / name, model, **{**grid, **description})
        return tmp_path / name

    return write


def image_of(array, spacing=(1.2, 1.1, 2.0), **placement):
    """A SimpleITK image of an array."""
    return make_image(array, spacing, **placement)


def read(path):
    """The SimpleITK image of a file, with the type of its file."""
    return sitk.ReadImage(str(path))
