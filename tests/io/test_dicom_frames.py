"""Files of several frames, each of which says where it lies."""

import sys

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.dicom_slices import write_frames
from vnet_fast.errors import InputError
from vnet_fast.io import dicom, volumes
from vnet_fast.io.grid import Grid

pytest.importorskip("pydicom", reason="pydicom is not installed")


def along(*places, shear=0.0):
    return [(-5, -6 + shear * z, z) for z in places]


@pytest.mark.parametrize("places", [(0, 3, 6, 9), (9, 6, 3, 0), (0, 6, 3, 9), (3, 9, 0, 6)], ids=str)
def test_frames_are_in_the_order_of_their_positions(tmp_path, places):
    folder = write_frames(tmp_path / "frames", along(*places))
    image = volumes.read_image(folder)
    assert image.GetSize() == (8, 6, 4)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.5, 3))
    np.testing.assert_allclose(image.GetOrigin(), (-5, -6, 0))
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[:, 0, 0], 100 * np.argsort(places))
    assert dicom.read_grid(folder) == Grid.of(image)
    assert dicom.sorted_files(folder) == [folder / "frames.dcm"]


@pytest.mark.parametrize(
    ("positions", "options", "message"),
    [
        (along(0, 3, 6, 0, 3, 6), {}, "frame 1 of frames.dcm and frame 4 of frames.dcm have the same position"),
        (along(0, 3, 6, 30), {}, "slices 3 and 4 of 4 are 24 mm apart, the others 3 mm"),
        (along(0, 3, 6, 9, shear=0.5), {}, "each slice is shifted against the one before"),
        ([*along(0, 3, 6), (1, -6, 9)], {}, "frame 4 of frames.dcm is shifted|each slice is shifted"),
        (along(0, 3, 6), {"scales": (1, 1, 2)}, "frames.dcm: its frames have different scales of intensity"),
        (along(0, 3), {"PixelMeasuresSequence": None}, r"where they lie .* \(PixelMeasuresSequence is missing\)"),
        (along(0, float("nan")), {}, "frame"),
    ],
    ids=["two volumes", "a gap", "tilted", "one shifted", "scales", "no spacing", "NaN"],
)
def test_frames_that_are_no_volume(tmp_path, positions, options, message):
    folder = write_frames(tmp_path / "frames", positions, **options)
    for read in (volumes.read_image, dicom.read_grid):
        with pytest.raises(InputError, match=message):
            read(folder)


def test_frames_of_one_scale(tmp_path):
    image = volumes.read_image(write_frames(tmp_path / "frames", along(0, 3, 6), scales=(2, 2, 2)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[:, 0, 1], [2, 202, 402])


@pytest.mark.parametrize("spacing", [(0.5, 0.7), (1.0, 1.0)], ids=str)
def test_files_of_one_frame_each(tmp_path, spacing):
    """They state spacing and position as those of several frames do."""
    series = tmp_path / "series"
    series.mkdir()
    for index, z in enumerate((0, 6, 3)):
        folder = write_frames(tmp_path / str(index), [(0, 0, z)], spacing=spacing)
        (folder / "frames.dcm").rename(series / f"{index}.dcm")
    image = volumes.read_image(series)
    assert image.GetSize() == (8, 6, 3)
    np.testing.assert_allclose(image.GetSpacing(), (*spacing[::-1], 3))
    np.testing.assert_allclose(image.GetOrigin(), (0, 0, 0))


def test_frames_that_are_not_described_are_placed_by_itk(tmp_path):
    folder = write_frames(tmp_path / "frames", along(0, 3, 6), described=False)
    assert volumes.read_image(folder).GetSize() == (8, 6, 3)


def test_without_pydicom(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / "frames", along(0, 3, 6))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"DICOM files of several frames need pydicom, which is not installed. pip in"):
        volumes.read_image(folder)
