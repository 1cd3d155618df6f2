import gzip
import os
import struct

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_image

from vnet_fast import formats, volumes
from vnet_fast.errors import InputError
from vnet_fast.formats import SUFFIXES


def written(folder, suffix, compressed=True):
    """A volume on disk: its path and the file that holds its voxels."""
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
    path, data = written(tmp_path, suffix, compressed)
    formats.check(path)
    assert formats.files_of(path) == ([path] if data == path else [path, data])


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize(("suffix", "compressed"), FORMATS)
def test_truncated(tmp_path, suffix, compressed, share):
    path, data = written(tmp_path, suffix, compressed)
    content = data.read_bytes()
    data.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"truncated|can't be read"):
        volumes.read_image(path)


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii.gz", ".nrrd"])
def test_damaged(tmp_path, suffix):
    path, data = written(tmp_path, suffix)
    content = bytearray(data.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|can't be read"):
        volumes.read_image(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\x00" * 600, b"nonsense" * 100], ids=["empty", "zeros", "text"])
def test_not_what_the_name_says(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"an empty file|not an? |damaged"):
        volumes.read_image(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"x.nii.gz: no such file. Check the path"):
        volumes.read_image(tmp_path / "x.nii.gz")


def test_missing_data_file(tmp_path):
    path, data = written(tmp_path, ".mhd")
    data.unlink()
    with pytest.raises(InputError, match=r"x.mhd: its data file x.zraw is missing. Put the two side by side"):
        volumes.read_image(path)


@pytest.mark.parametrize("name", ["/etc/hostname", "../x.zraw", "x.mhd", "x%03d.raw", "LIST", ""])
def test_data_file_elsewhere(tmp_path, name):
    path, _ = written(tmp_path, ".mhd")
    path.write_text(path.read_text().replace("x.zraw", name))
    with pytest.raises(InputError, match=r"outside its folder|names itself|several files"):
        volumes.read_image(path)


def test_nrrd_with_its_data_elsewhere(tmp_path):
    path, _ = written(tmp_path, ".nrrd")
    header, _, data = path.read_bytes().partition(b"\n\n")
    (tmp_path / "x.raw.gz").write_bytes(data)
    path.write_bytes(header + b"\ndata file: x.raw.gz\n\n")
    with pytest.raises(InputError, match="its data is in another file"):
        volumes.read_image(path)


@pytest.mark.parametrize(("place", "value"), [(40, 0), (40, 9), (42, -3), (72, 0)])
def test_damaged_nifti_header(tmp_path, place, value):
    path, _ = written(tmp_path, ".nii.gz")
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<h", content, place, value)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(InputError, match="damaged NIfTI header"):
        volumes.read_image(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("DimSize = 32 32 20", "DimSize = 32 32", "longer than"),
        ("DimSize = 32 32 20", "DimSize = 32 -32 20", "its header says a size of"),
        ("DimSize = 32 32 20", "DimSize = 32 32 x", "damaged header"),
        ("MET_SHORT", "MET_STRANGE", "damaged header"),
        ("NDims = 3", "NDims = 3\nHeaderSize = abc", "damaged header"),
        ("ElementDataFile", "Elsewhere", "not a MetaImage header"),
    ],
)
def test_damaged_meta_header(tmp_path, old, new, words):
    path, _ = written(tmp_path, ".mhd", compressed=False)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=words):
        volumes.read_image(path)


def test_other_kinds_of_file(tmp_path):
    os.mkfifo(tmp_path / "x.mha")
    with pytest.raises(InputError, match="not a regular file"):
        volumes.read_image(tmp_path / "x.mha")
    (tmp_path / "y.nii").symlink_to(tmp_path / "y.nii")
    with pytest.raises(InputError, match="can't be read"):
        volumes.read_image(tmp_path / "y.nii")
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(InputError, match="not a format that is read"):
        volumes.read_image(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["A.NII.GZ", "b.Mha", "c.nrrd"])
def test_upper_case_suffixes(tmp_path, name):
    path, _ = written(tmp_path, formats.suffix_of(name))
    path.rename(tmp_path / name)
    assert volumes.read_image(tmp_path / name).GetSize() == (32, 32, 20)
    assert formats.stem_of(name) == name[: name.index(".")]


def test_what_cannot_be_opened_is_no_dicom(tmp_path, monkeypatch):
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
    with pytest.raises(InputError, match=r"a.nrrd: the same case as a.mhd"):
        formats.volumes_in(tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        formats.volumes_in(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        formats.volumes_in(tmp_path / "file")
