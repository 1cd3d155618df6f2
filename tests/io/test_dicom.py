import weakref

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.dicom_slices import write_dicom, write_thick_slice, write_without_pixels
from vnet_fast.errors import InputError
from vnet_fast.io import dicom, volumes
from vnet_fast.io.grid import Grid


def test_dicom_folder(tmp_path):
    image = volumes.read_image(write_dicom(tmp_path / "series", [6, 0, 3, 9]))
    assert image.GetSize() == (8, 6, 4)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.7, 3), atol=1e-5)
    np.testing.assert_allclose(image.GetOrigin(), (-5, -6, 0), atol=1e-5)
    # the slices are sorted by position, not by name
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[:, 0, 0], [100, 200, 0, 300])


def test_dicom_folder_with_a_missing_slice(tmp_path):
    with pytest.raises(InputError, match="slices 3 and 4 of 5 are 6 mm apart, the others 3 mm"):
        volumes.read_image(write_dicom(tmp_path / "series", [0, 3, 6, 12, 15]))


def test_dicom_folder_with_two_series(tmp_path):
    write_dicom(tmp_path / "series", [0, 3, 6])
    write_dicom(tmp_path / "series", [0, 3, 6], series="1.2.3.5")
    with pytest.raises(InputError, match="2 DICOM series"):
        volumes.read_image(tmp_path / "series")


@pytest.mark.parametrize("gap", [3.4, 2.6])
def test_a_slice_off_its_regular_position(tmp_path, gap):
    with pytest.raises(InputError, match="mm apart, the others 3 mm"):
        volumes.read_image(write_dicom(tmp_path / "series", [0, 3, 6, 6 + gap]))


@pytest.mark.parametrize("index", [0, 2, 4], ids=["first", "middle", "last"])
def test_a_truncated_slice_is_named(tmp_path, index):
    folder = write_dicom(tmp_path / "series", [0, 3, 6, 9, 12])
    damaged = folder / f"1.2.3.4-{index}.dcm"
    damaged.write_bytes(damaged.read_bytes()[:300])
    with pytest.raises(
        InputError, match=rf"1.2.3.4-{index}.dcm: truncated or damaged: it can't be read as a DICOM slice"
    ):
        volumes.read_image(folder)


@pytest.mark.parametrize(
    ("storage_class", "message"),
    [
        ("481.3", r"an RT Structure Set \(RTSTRUCT\), not an image. Take it out .*: for a mask, export a DICOM Seg"),
        ("88.33", r"a Structured Report \(SR\), not an image. Take it out of the folder$"),
        ("11.1", r"a Presentation State \(PR\), not an image"),
        ("4", "truncated or damaged: it can't be read as a DICOM slice"),
    ],
)
def test_what_has_no_pixels_among_slices(tmp_path, storage_class, message):
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    write_without_pixels(folder / "RS.dcm", f"1.2.840.10008.5.1.4.1.1.{storage_class}")
    for path in (folder, folder / "RS.dcm"):
        with pytest.raises(InputError, match=f"RS.dcm: {message}"):
            volumes.read_image(path)


def test_files_that_may_be_slices(tmp_path, monkeypatch):
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    (folder / "notes").write_text("notes")
    assert volumes.read_image(folder).GetSize() == (8, 6, 3)
    (folder / "IM0004").write_bytes(b"")
    with pytest.raises(InputError, match="IM0004: an empty file"):
        volumes.read_image(folder)
    (folder / "IM0004").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "notes")
    with pytest.raises(InputError, match="notes: truncated or damaged: it is not a DICOM file"):
        volumes.read_image(folder)


def test_dicom_folder_of_one_slice(tmp_path):
    image = volumes.read_image(write_dicom(tmp_path / "series", [6]))
    assert image.GetSize() == (8, 6, 1)
    np.testing.assert_allclose(image.GetOrigin(), (-5, -6, 6), atol=1e-5)


THICK_SLICES = [("4", None, 4), ("4", "", 4), ("4", "5.5", 5.5), ("", None, 1), ("0", None, 1), ("1e9", None, 1)]


@pytest.mark.parametrize(("thickness", "gap", "expected"), THICK_SLICES, ids=str)
def test_a_single_slice_is_as_thick_as_it_says(tmp_path, thickness, gap, expected):
    folder = write_thick_slice(tmp_path / "series", thickness, gap)
    image = volumes.read_image(folder)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.7, expected), atol=1e-5)
    assert dicom.read_grid(folder) == Grid.of(image)


def test_a_negative_distance_is_one_of_the_direction(tmp_path):
    folder = write_thick_slice(tmp_path / "series", "4", "-4")
    image = volumes.read_image(folder)
    np.testing.assert_allclose(image.GetSpacing(), (0.7, 0.7, 4), atol=1e-5)
    np.testing.assert_allclose(image.GetDirection(), np.diag([1, 1, -1]).ravel(), atol=1e-5)
    assert dicom.read_grid(folder) == Grid.of(image)


def test_an_rt_image_states_the_spacing_of_its_plane(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    (path,) = write_dicom(tmp_path / "series", [0]).iterdir()
    header = pydicom.dcmread(path)
    # RT Image Storage
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.1"
    del header.PixelSpacing
    header.ImagePlanePixelSpacing = [0.3, 0.4]
    header.save_as(path)
    np.testing.assert_allclose(volumes.read_image(path.parent).GetSpacing()[:2], (0.4, 0.3), atol=1e-5)


def test_a_screenshot_among_slices_is_another_series(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    (path,) = write_dicom(tmp_path / "other", [0], series="1.2.3.5").iterdir()
    header = pydicom.dcmread(path)
    del header.PixelSpacing
    header.save_as(folder / path.name)
    with pytest.raises(InputError, match="2 DICOM series"):
        volumes.read_image(folder)


@pytest.mark.parametrize(
    ("element", "message"),
    [("PixelSpacing", "does not state the spacing"), ("ImagePositionPatient", "does not state its position")],
)
def test_slices_that_do_not_say_where_they_lie(tmp_path, element, message):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        delattr(header, element)
        header.save_as(path)
    with pytest.raises(InputError, match=rf"series/.*dcm: {message}"):
        volumes.read_image(folder)


def test_slices_of_different_sizes(tmp_path):
    write_dicom(tmp_path / "series", [0, 3, 6])
    other = write_dicom(tmp_path / "other", [9], size=(8, 7)) / "1.2.3.4-0.dcm"
    other.rename(tmp_path / "series" / "x.dcm")
    with pytest.raises(InputError, match=r"its slices differ in size or spacing, for example 1.2.3.4-0.dcm and x.dcm"):
        volumes.read_image(tmp_path / "series")


def test_a_dicomdir_is_not_a_slice(tmp_path):
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert volumes.read_image(folder).GetSize() == (8, 6, 3)


def test_folder_without_dicom(tmp_path):
    with pytest.raises(InputError, match="a folder without a DICOM series"):
        volumes.read_image(tmp_path)


def test_real_dicom_series(real_data):
    image = volumes.read_image(real_data / "dicom" / "Prostate3T-03-0001")
    assert image.GetSize()[2] == 19
    # ITK's own reader of series reads the same
    folder = str(real_data / "dicom" / "Prostate3T-03-0001")
    series = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder), sitk.sitkFloat32)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(series))
    for name in ("spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(image), name), getattr(Grid.of(series), name), atol=1e-6)
    assert np.ptp(sitk.GetArrayViewFromImage(image)) > 0


def test_a_slice_shifted_sideways_is_named(tmp_path):
    folder = write_dicom(tmp_path / "series", [0, 3, 6, 9, 12])
    write_dicom(tmp_path / "moved", [6], shift=9)
    (tmp_path / "moved" / "1.2.3.4-0.dcm").replace(folder / "1.2.3.4-2.dcm")
    with pytest.raises(InputError, match=r"1\.2\.3\.4-2\.dcm is shifted 54 mm sideways against the others"):
        volumes.read_image(folder)


@pytest.mark.parametrize("spacing", [0.75, 5 / 3, 2.5])
def test_positions_rounded_to_a_tenth_are_even(tmp_path, spacing):
    positions = [round(spacing * index, 1) for index in range(12)]
    image = volumes.read_image(write_dicom(tmp_path / "series", positions))
    assert image.GetSpacing()[2] == pytest.approx(spacing, abs=0.01)


def test_a_drift_is_refused(tmp_path):
    positions = np.cumsum([1.0] * 20 + [1.1] * 20)
    with pytest.raises(InputError, match="mm apart, the others"):
        volumes.read_image(write_dicom(tmp_path / "series", positions))


@pytest.mark.parametrize("name", ["x.dcm", "x.IMA", "IM0001"])
def test_a_slice_that_is_named_by_itself(tmp_path, name):
    write_dicom(tmp_path / "series", [0, 3, 6])
    path = (tmp_path / "series" / "1.2.3.4-1.dcm").rename(tmp_path / name)
    for read in (volumes.read_image, volumes.read_mask):
        with pytest.raises(InputError, match=rf"{name}: a DICOM slice, not a volume. Name the folder of its series$"):
            read(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"{name}: truncated or damaged: it can't be read as a DICOM slice"):
        volumes.read_image(path)


def test_a_file_of_several_slices_that_is_named_by_itself(tmp_path):
    path = tmp_path / "x.dcm"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)), str(path))
    with pytest.raises(InputError, match=r"x.dcm: a DICOM file of 3 slices, .* and name the folder$"):
        volumes.read_image(path)
    # which then is read
    assert volumes.read_image(tmp_path).GetSize() == (5, 4, 3)


def test_a_file_that_is_only_named_as_dicom(tmp_path):
    (tmp_path / "x.dcm").write_bytes(b"text" * 100)
    with pytest.raises(InputError, match=r"x.dcm: truncated or damaged: it is not a DICOM file. Copy or export"):
        volumes.read_image(tmp_path / "x.dcm")
    with pytest.raises(InputError, match=r"y.dcm: no such file"):
        volumes.read_image(tmp_path / "y.dcm")


def test_slices_of_different_pixel_types(tmp_path):
    folder = write_dicom(tmp_path / "series", [0, 3, 6])
    path = folder / "1.2.3.4-2.dcm"
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    image = reader.Execute()
    unsigned = sitk.Cast(image + 40_000, sitk.sitkUInt16)
    for key in ("0008|0060", "0020|000d", "0020|000e", "0020|0032", "0020|0037", "0018|0050"):
        unsigned.SetMetaData(key, image.GetMetaData(key))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(unsigned)
    array = sitk.GetArrayFromImage(volumes.read_image(folder))
    np.testing.assert_array_equal(array[:, 0, 0], [0, 100, 40_200])


def test_reading_a_series_holds_one_slice_at_a_time(tmp_path, monkeypatch):
    folder = write_dicom(tmp_path / "series", [0, 3, 6, 9])
    images = []

    def read(path, image_io, read_file=dicom.read_file):
        assert sum(image() is not None for image in images) <= 1
        image = read_file(path, image_io)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(dicom, "read_file", read)
    assert volumes.read_image(folder).GetSize() == (8, 6, 4)
    assert len(images) == 4
