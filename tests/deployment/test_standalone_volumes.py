"""What a folder with a network refuses to read, as `predict` does, and the names of its volumes."""

import os

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.dicom_slices import write_dicom, write_frames, write_thick_slice
from tests.io.test_dicom import THICK_SLICES
from tests.volumes import write_case
from vnet_fast.deployment.standalone import volumes
from vnet_fast.io import dicom


def test_a_link_keeps_its_name(tmp_path):
    image, _ = write_case(tmp_path, "content", suffix=".nii.gz")
    link = tmp_path / "scan.nii.gz"
    link.symlink_to(image)
    assert volumes.find(link, several=False) == {"scan": [link]}


def test_a_tilted_series(tmp_path):
    folder = write_dicom(tmp_path / "series", [0, 3, 6, 9], shift=0.5)
    with pytest.raises(volumes.InputError, match="series: each slice is shifted against the one before"):
        volumes._read_series(folder)


def test_a_file_of_several_frames(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    folder = write_frames(tmp_path / "frames", [(0, 0, z) for z in (0, 6, 3, 9)])
    with pytest.raises(volumes.InputError, match=r"frames: a file of 4 slices. Convert it to one of \.nii\.gz"):
        volumes._read_series(folder)


@pytest.mark.parametrize(("thickness", "gap", "expected"), THICK_SLICES, ids=str)
def test_a_single_slice_is_as_thick_as_in_predict(tmp_path, thickness, gap, expected):
    folder = write_thick_slice(tmp_path / "series", thickness, gap)
    grid = dicom.read_grid(folder)
    np.testing.assert_allclose(volumes._read_series(folder).GetSpacing(), grid.spacing)
    np.testing.assert_allclose(grid.spacing, (0.7, 0.7, expected), atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_a_full_disk(tmp_path, monkeypatch, share, suffix):
    """Of which ITK's writer of NIfTI says nothing."""
    path, original = tmp_path / f"mask{suffix}", sitk.WriteImage
    path.write_bytes(b"previous")

    def write(image, name, useCompression):  # noqa: N803 - SimpleITK's name
        original(image, name, useCompression=useCompression)
        os.truncate(name, int(share * os.path.getsize(name)))

    monkeypatch.setattr(sitk, "WriteImage", write)
    with pytest.raises(volumes.InputError, match=r"can't be written \("):
        # it ends in background, which ITK takes what is missing for
        volumes.write(sitk.Image([64, 8, 8], sitk.sitkUInt8), path)
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_masks_are_no_volumes(tmp_path):
    for name in ("A", "A_seg", "A.seg", "A_segmentation", "B_0000", "B_gt", "C_mask"):
        (tmp_path / f"{name}.nrrd").touch()
    assert list(volumes.find(tmp_path, several=False)) == ["A", "B", "C_mask"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_is_not_finite_in_nifti(tmp_path, suffix):
    array = np.ones((4, 5, 6), np.float64)
    array[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"x{suffix}"))
    with pytest.raises(volumes.InputError, match="NaN or infinite"):
        volumes.read([tmp_path / f"x{suffix}"], 1)
