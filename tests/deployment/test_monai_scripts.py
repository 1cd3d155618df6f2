"""The scripts of a MONAI bundle compute what this package does, with PyTorch and MONAI alone."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image
from vnet_fast import VNet
from vnet_fast.data.channels import Channel
from vnet_fast.deployment import bundle, monai_scripts
from vnet_fast.deployment.monai_scripts import cases, vnet
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, probability_on_grid, working_grid
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.task import Task
from vnet_fast.regions import Region, label_table

pytest.importorskip("monai", reason="monai is not installed")
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from vnet_fast.deployment.monai_scripts.inferer import WindowInferer
from vnet_fast.deployment.monai_scripts.transforms import NormaliseVolumed, RegionsToLabelsd, ToNetworkGridd

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
TURNED = (0, -1, 0, 0, 0, -1, 1, 0, 0)
# of slices from right to left, and from front to back
SAGITTAL, CORONAL = (0, 0, 1, 1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, 1, 0, -1, 0)
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
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no volumes"):
        cases.find_images(str(tmp_path / "empty"), 2)


@pytest.mark.parametrize(
    ("channels", "files", "needed"),
    [
        pytest.param(2, ("A_0001.nii", "A_0002.nii"), "A_0000 to A_0001", id="the first one is missing"),
        pytest.param(3, ("A_0000.nii", "A_0001.nii", "A_0003.nii"), "A_0000 to A_0002", id="one is missing"),
        pytest.param(2, ("A_0000.nii", "A_0001.nii", "A_0002.nii"), "A_0000 to A_0001", id="one too many"),
        pytest.param(2, ("A_0000.nii", "A_0000.nii.gz"), "A_0000 to A_0001", id="one of them twice"),
        pytest.param(2, ("A_0001.nii",), "A_0000 to A_0001", id="only another one"),
        pytest.param(2, ("A.nii", "A.nii.gz"), "A_0000 to A_0001", id="two files without a number"),
        pytest.param(2, ("A.nii", "A_0001.nii"), "A_0000 to A_0001", id="with and without a number"),
        pytest.param(1, ("A.nii", "A.nii.gz"), "one file", id="one channel, twice"),
        pytest.param(1, ("A.nii", "A_0000.nii"), "one file", id="one channel, with and without a number"),
    ],
)
def test_wrong_channels_of_a_folder(tmp_path, channels, files, needed):
    """What predict and the pipeline refuse is no volume of a bundle either."""
    for name in (*files, "B.nii"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f": A has the files? {', '.join(files)}; the network needs {needed}"):
        cases.find_images(str(tmp_path), channels)


def test_one_file_of_a_volume(tmp_path):
    """It may be numbered, as predict allows, and with one channel another number is part of the name."""
    (tmp_path / "A_0000.nii").touch()
    assert cases.find_images(str(tmp_path), 2) == [{"image": [str(tmp_path / "A_0000.nii")]}]
    (tmp_path / "A_0001.nii").touch()
    assert len(cases.find_images(str(tmp_path), 1)) == 2


@pytest.fixture
def with_itk(monkeypatch):
    """ITK seems to be installed; SimpleITK, which has it inside, looks for the series."""
    monkeypatch.setattr(cases.importlib.util, "find_spec", lambda name: name == "itk" or None)
    monkeypatch.setattr(cases, "series_in", lambda folder: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def test_other_formats_of_a_folder(tmp_path, monkeypatch, with_itk):
    """They, and folders of DICOM slices, are volumes if ITK is there."""
    for name in ("A.nrrd", "B.nhdr", "B.raw.gz", "C.mha", "D.MHD", "D.zraw", "E_segmentation.mha", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "notes.txt").touch()
    series = write_dicom(tmp_path / "F", [0, 2, 4])
    found = cases.find_images(str(tmp_path), 1)
    paths = [Path(path) for case in found for path in case["image"]]
    assert [path.name for path in paths] == ["A.nrrd", "B.nhdr", "C.mha", "D.MHD", "F"]
    names = [cases.name_mask({"filename_or_obj": str(path)}, None)["subject"] for path in paths]
    assert names == ["A", "B", "C", "D", "F"]
    # a series itself, also as the current folder
    monkeypatch.chdir(series)
    for folder in (series, "."):
        assert cases.find_images(str(folder), 1) == [{"image": [str(series)]}]
    monkeypatch.setattr(cases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"A.nrrd: MONAI reads it with ITK, which is not installed. pip install itk"):
        cases.find_images(str(tmp_path), 1)


def test_channels_of_a_volume_may_be_series(tmp_path, with_itk):
    folders = [write_dicom(tmp_path / f"A_{number:04d}", [0, 2, 4]) for number in range(2)]
    assert cases.find_images(str(tmp_path), 2) == [{"image": list(map(str, folders))}]


@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "one of its folders"])
def test_volumes_among_slices_are_not_dropped(tmp_path, with_itk, whole):
    folder = write_dicom(tmp_path / "A", [0, 2, 4])
    (folder / ".hidden.nii").touch()
    assert cases.find_images(str(folder if whole else tmp_path), 1) == [{"image": [str(folder)]}]
    (folder / "B.nii.gz").touch()
    with pytest.raises(ValueError, match=r"A: DICOM slices and B.nii.gz in one folder. Give the series a folder"):
        cases.find_images(str(folder if whole else tmp_path), 1)


@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "one of its folders"])
def test_several_series_in_one_folder_are_refused(tmp_path, with_itk, whole):
    """Of which MONAI reads the first one."""
    folder = write_dicom(tmp_path / "A", [0, 2, 4])
    write_dicom(folder, [0, 2, 4], series="1.2.3.5")
    with pytest.raises(ValueError, match=r"A: MONAI finds 2 DICOM series. Give each series a folder of its own"):
        cases.find_images(str(folder if whole else tmp_path), 1)


def test_series_are_those_that_monai_finds(tmp_path):
    pytest.importorskip("itk", reason="itk is not installed")
    folder = write_dicom(tmp_path / "A", [0, 2, 4])
    assert len(cases.series_in(folder)) == 1
    write_dicom(folder, [0, 2, 4], series="1.2.3.5")
    assert len(cases.series_in(folder)) == 2


@pytest.mark.parametrize("size", [(34, 47, 1), (5, 1, 7), (1, 1, 1), (5, 6, 7)])
@pytest.mark.parametrize("direction", [OBLIQUE, SAGITTAL, CORONAL], ids=["oblique", "sagittal", "coronal"])
@pytest.mark.parametrize("channel_axis", ["no_channel", 3], ids=["3-D", "4-D"])
@pytest.mark.parametrize("regions", [(), (Region("ball", (1, 2)), Region("right", (2,)))], ids=["classes", "regions"])
def test_a_mask_has_the_axes_of_its_volume(tmp_path, monkeypatch, size, direction, channel_axis, regions):
    """Also where there is one slice, or the volume had several channels, through the transforms that a bundle names."""
    pytest.importorskip("nibabel", reason="nibabel is not installed")
    monkeypatch.setitem(sys.modules, "scripts", monai_scripts)
    task = Task(SPACING, SIZE, regions=regions)
    image = make_image(np.zeros(size[::-1], np.int16), (1.0, 2.0, 3.0), (4, 5, 6), direction)
    path = tmp_path / "images" / "A.nii.gz"
    path.parent.mkdir()
    sitk.WriteImage(image, str(path))
    parts = {"output_dir": str(tmp_path), "save": bundle._postprocessing(task)[-1]}
    saver = ConfigParser(parts, globals={"name_mask": cases.name_mask}).get_parsed_content("save")
    mask = Compose([LoadImaged("pred"), EnsureChannelFirstd("pred")])({"pred": str(path)})
    mask["pred"][:] = torch.arange(mask["pred"].numel()).reshape(mask["pred"].shape) % 3
    mask["pred"].meta["original_channel_dim"] = channel_axis
    saver(mask)
    found = sitk.ReadImage(str(tmp_path / "A.nii.gz"))
    assert found.GetSize() == size
    for question in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(found, question)(), getattr(image, question)(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found).T, mask["pred"][0].numpy())
