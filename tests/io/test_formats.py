import gzip
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats, volumes
from vnet_fast.io.formats import SUFFIXES


def write_volume(folder, suffix, compressed=True):
    """Writes a volume, and returns its path and the file that holds its voxels."""
    path = folder / f"x{suffix}"
    array = np.random.default_rng(0).integers(0, 1000, (20, 32, 32), dtype=np.int16)
    sitk.WriteImage(make_image(array), str(path), useCompression=compressed)
    data = path
    if suffix == ".mhd":
        data = folder / ("x.zraw" if compressed else "x.raw")
    return path, data


FORMATS = [(".mhd", True), (".mhd", False), (".mha", True), (".mha", False), (".nii", False), (".nii.gz", True),
           (".nrrd", True), (".nrrd", False)]  # fmt: skip


@pytest.mark.parametrize(("suffix", "compressed"), FORMATS)
def test_sound_files_pass(tmp_path, suffix, compressed):
    path, data = write_volume(tmp_path, suffix, compressed)
    formats.verify_volume(path)
    assert formats.files_of(path) == ([path] if data == path else [path, data])
    assert volumes.read_image(path).GetSize() == (32, 32, 20)


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize(("suffix", "compressed"), FORMATS)
def test_truncated(tmp_path, suffix, compressed, share):
    path, data = write_volume(tmp_path, suffix, compressed)
    content = data.read_bytes()
    data.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"truncated|can't be read"):
        volumes.read_image(path)


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz", ".nrrd"])
def test_damaged(tmp_path, suffix):
    path, data = write_volume(tmp_path, suffix)
    content = bytearray(data.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|can't be read"):
        volumes.read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\x00" * 600, b"nonsense" * 100], ids=["empty", "zeros", "text"])
def test_content_of_another_kind(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"an empty file|not an? |damaged"):
        volumes.read_image(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"x.nii.gz: no such file. Check the path"):
        volumes.read_image(tmp_path / "x.nii.gz")


def test_missing_data_file(tmp_path):
    path, data = write_volume(tmp_path, ".mhd")
    data.unlink()
    with pytest.raises(InputError, match=r"x.mhd: its data file x.zraw is missing. Put both files into one folder"):
        volumes.read_image(path)


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.zraw", "x.mhd", "x%03d.raw", "LIST", ""])
def test_data_file_elsewhere(tmp_path, name):
    path, _ = write_volume(tmp_path, ".mhd")
    path.write_text(path.read_text().replace("x.zraw", name))
    with pytest.raises(InputError, match=r"outside its folder|names itself|several files"):
        volumes.read_image(path)


def write_detached(folder):
    """Writes a detached header, and returns its path and that of its data file."""
    path = folder / "x.nhdr"
    sitk.WriteImage(make_image(np.arange(60, dtype=np.int16).reshape(3, 4, 5)), str(path), useCompression=True)
    return path, folder / "x.raw.gz"


def test_detached_header(tmp_path):
    path, data = write_detached(tmp_path)
    assert formats.files_of(path) == [path, data]
    array = sitk.GetArrayFromImage(volumes.read_image(path))
    np.testing.assert_array_equal(array.ravel(), np.arange(60))
    # the suffix of a single file does not keep a header from naming a data file
    path.rename(tmp_path / "x.nrrd")
    assert formats.files_of(tmp_path / "x.nrrd") == [tmp_path / "x.nrrd", data]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_image(tmp_path / "x.nrrd")), array)


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.raw.gz", "x.nhdr", "x%03d.raw", "LIST", "./", "no.raw"])
def test_detached_header_with_its_data_elsewhere(tmp_path, name):
    path, _ = write_detached(tmp_path)
    path.write_text(path.read_text().replace("data file: x.raw.gz", f"data file: {name}"))
    message = r"outside its folder|names itself|several files|not a regular file|is missing"
    with pytest.raises(InputError, match=message):
        volumes.read_image(path)


@pytest.mark.parametrize(("place", "value"), [(40, 0), (40, 9), (42, -3), (72, 0)])
def test_damaged_nifti_header(tmp_path, place, value):
    path, _ = write_volume(tmp_path, ".nii.gz")
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", content, place, value)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(InputError, match=r"damaged header|its header gives a size of"):
        volumes.read_image(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DimSize = 32 32 20", "DimSize = 32 32", "3 numbers are needed"),
        ("DimSize = 32 32 20", "DimSize = 32 -32 20", "its header gives a size of"),
        ("DimSize = 32 32 20", "DimSize = 32 32 x", "damaged header"),
        ("MET_SHORT", "MET_STRANGE", "its ElementType MET_STRANGE is not supported"),
        ("NDims = 3", "NDims = 3\nHeaderSize = abc", "damaged header"),
        ("NDims = 3", "NDims = 3\nHeaderSize = 7", "truncated"),
        ("NDims = 3", "NDims = 3\nHeaderSize = -2", "HeaderSize of -2 is not supported"),
        ("NDims = 3", "NDims = 3\nNDims = 3", "NDims is given twice"),
        ("NDims = 3", "NDims = 3\nOrigin = 1 1 1", "Origin and Offset are both given"),
        (
            "NDims = 3",
            "NDims = 3\nElementToIntensityFunctionSlope = 2",
            r"its header scales the voxels \(ElementToIntensityFunctionSlope = 2\)",
        ),
        ("NDims = 3", "NDims = 3\nDistanceUnits = um", "its DistanceUnits are um, not mm"),
        ("BinaryData = True", "BinaryData = False", "its voxels are written as text"),
        ("BinaryData = True", "BinaryData = Yes", "BinaryData is 'Yes', not True or False"),
        ("ElementSpacing", "ElementSpaceing", "'ElementSpaceing' is not a known field; ElementSpacing may be meant"),
        ("ElementSpacing = ", "Comment = ", "damaged header: ElementSpacing is missing"),
        ("ElementDataFile", "Elsewhere", "not a MetaImage header: it has no ElementDataFile"),
    ],
)
def test_damaged_meta_header(tmp_path, old, new, message):
    path, _ = write_volume(tmp_path, ".mhd", compressed=False)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        volumes.read_image(path)


def test_other_kinds_of_file(tmp_path):
    os.mkfifo(tmp_path / "x.mha")
    with pytest.raises(InputError, match="not a regular file"):
        volumes.read_image(tmp_path / "x.mha")
    for device in ("/dev/zero", "/dev/null"):
        (tmp_path / "x.nii").unlink(missing_ok=True)
        (tmp_path / "x.nii").symlink_to(device)
        with pytest.raises(InputError, match=r"x.nii: not a regular file"):
            volumes.read_image(tmp_path / "x.nii")
    for name in ("x", "x.dcm"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: not a regular file"):
            volumes.read_image(tmp_path / name)
    (tmp_path / "y.nii").symlink_to(tmp_path / "y.nii")
    with pytest.raises(InputError, match="can't be read"):
        volumes.read_image(tmp_path / "y.nii")
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"not a supported format. Convert it to one of .nii.gz .nii .mhd .mha .nrrd .nhdr$"
    ):
        volumes.read_image(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["A.NII.GZ", "b.Mha", "c.nrrd"])
def test_upper_case_suffixes(tmp_path, name):
    path, _ = write_volume(tmp_path, formats.suffix_of(name))
    path.rename(tmp_path / name)
    assert volumes.read_image(tmp_path / name).GetSize() == (32, 32, 20)
    assert formats.stem_of(name) == name[: name.index(".")]


def test_an_unreadable_file_is_not_dicom(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"\0" * 128 + b"DICM")
    assert formats.is_dicom_folder(tmp_path)

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert not formats.is_dicom_file(tmp_path / "x")
    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    assert not formats.is_dicom_folder(tmp_path)


def test_names():
    assert formats.suffix_of("x.nii.gz") == ".nii.gz"
    assert formats.stem_of("a.b.nii.gz") == "a.b"
    assert formats.suffix_of(".nii.gz") is None
    assert formats.suffix_of("x.png") is None
    assert formats.stem_of("series") == "series"


def test_volumes_of_a_folder(tmp_path):
    for name in ("b.nii.gz", "a.mhd", "._b.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "0001").write_bytes(b"\0" * 128 + b"DICM")
    assert list(formats.volumes_in(tmp_path)) == ["a", "b", "series"]
    (tmp_path / "a.nrrd").write_bytes(b"x")
    (tmp_path / "b.nii").write_bytes(b"x")
    with pytest.raises(InputErrors, match=r"a.nrrd: the same case as a.mhd.*\n.*b.nii.gz: the same case as b.nii"):
        formats.volumes_in(tmp_path)


def test_slices_among_volumes(tmp_path):
    (tmp_path / "b.nii.gz").write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InputError, match=r"holds DICOM slices itself \(IM0001\). Give each series a folder"):
        formats.volumes_in(tmp_path)
    with pytest.raises(InputError, match=r"DICOM slices and b.nii.gz in one folder. Give the series"):
        formats.files_of(tmp_path)
    with pytest.raises(InputError, match=r"DICOM slices and b.nii.gz in one folder"):
        volumes.read_image(tmp_path)


def test_folders_that_can_not_be_listed(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        formats.volumes_in(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        formats.volumes_in(tmp_path / "file")
