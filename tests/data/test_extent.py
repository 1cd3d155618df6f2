"""Whether volumes exceed the network's grid, from their headers; and how often their voxels are read for it."""

import gzip
import math
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.test_channels import write_channels
from tests.io.dicom_slices import write_series
from tests.volumes import make_image, write_case
from vnet_fast.data import extent, training_data
from vnet_fast.data.cases import Case, find_cases
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats, integrity, volumes
from vnet_fast.io.grid import covering_size, covering_size_of, working_grid
from vnet_fast.run.configuration import Config

SPACING, SMALL, LARGE = (1.2, 1.1, 2.0), (16, 16, 16), (40, 20, 20)


def settings(folder, **options):
    options = {"recipe": "fast", "spacing": SPACING, "volume": SMALL, "folds": 3, **options}
    return Config(data=str(folder), cache=str(folder.parent / "cache"), **options)


@pytest.fixture
def large(tmp_path):
    """Cases of up to 40 voxels along an axis."""
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(3):
        write_case(folder, f"Case{index:02d}", seed=index, size=(LARGE[0] - index, *LARGE[1:]))
    return folder


@pytest.fixture
def reads(monkeypatch):
    """How often the voxels of each file are read."""
    counts, original = Counter(), volumes.read_file

    def read_file(path, image_io):
        counts[path.name] += 1
        return original(path, image_io)

    monkeypatch.setattr(volumes, "read_file", read_file)
    return counts


@pytest.mark.parametrize(
    ("patches", "volume", "expected"),
    [("auto", SMALL, True), ("auto", LARGE, False), ("on", SMALL, True), ("off", SMALL, False)],
)
def test_a_first_start_reads_the_voxels_of_each_file_once(large, reads, monkeypatch, patches, volume, expected):
    run = settings(large, patches=patches, volume=volume)
    data = training_data.load_data(run)
    assert data.patches is expected
    assert {case.shape for case in data.training + data.validation} != {volume[::-1]} or not expected
    names = {path.name for case in find_cases(large) for path in (case.image, case.mask)}
    assert reads == dict.fromkeys(names, 1)
    assert len(list(Path(run.cache).iterdir())) == 3
    reads.clear()
    # nor does a second start read headers, of which a DICOM series has many
    monkeypatch.setattr(volumes, "read_grid", pytest.fail)
    assert training_data.load_data(run).patches is expected
    assert not reads


def test_volumes_that_differ_are_not_hashed(large, monkeypatch):
    """To find copies; the ranks of large cases would be read from their entries for it."""
    monkeypatch.setattr(PreparedCase, "fingerprint", property(lambda case: pytest.fail("read the ranks")))
    assert training_data.load_data(settings(large)).patches


def test_a_mirrored_volume_is_no_copy(tmp_path):
    """It has the same histogram, and so the same table of intensities."""
    (tmp_path / "data").mkdir()
    paths = write_case(tmp_path / "data", "A", size=SMALL)
    for path in paths:
        mirrored = make_image(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[::-1].copy(), SPACING)
        sitk.WriteImage(mirrored, str(path.with_name(path.name.replace("A", "B"))))
    run = settings(tmp_path / "data", folds=2)
    data = training_data.load_data(run)
    (first,), (second,) = data.training, data.validation
    np.testing.assert_array_equal(first.table, second.table)
    sitk.WriteImage(sitk.ReadImage(str(paths[0])), str(paths[0].with_name("B.mhd")))
    with pytest.raises(InputErrors, match=r"the same volume as A\.mhd"):
        training_data.load_data(run)


def random_rotation(generator):
    """An oblique direction with any order of axes: a random rotation, or one in steps of 90 degrees."""
    if generator.random() < 0.5:
        direction = np.eye(3)[generator.permutation(3)] * generator.choice([-1, 1], 3)
    else:
        direction = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    # DICOM's and NIfTI's third axes are turned with the others
    direction[:, 2] *= np.sign(np.linalg.det(direction))
    return direction.ravel()


def write(folder, kind, image):
    """Writes a volume in a format, or as the first of several channels, and returns the files of its channels."""
    if kind == "dicom":
        return (write_series(folder / "x", image),)
    if kind == "4-D":
        sitk.WriteImage(sitk.JoinSeries([image, image]), str(folder / "x.nii.gz"))
        return (folder / "x.nii.gz",)
    names = ("x_0000.nii.gz", "x_0001.nii.gz") if kind == "channels" else (f"x{kind}",)
    paths = tuple(folder / name for name in names)
    for path in paths:
        sitk.WriteImage(image, str(path), useCompression=True)
    return paths


def covering_by_turning(image, spacing, size):
    """The covering size of an image whose voxels ITK turns to left, posterior, superior."""
    turned = sitk.DICOMOrient(image, "LPS")
    for count, step, working, length in zip(turned.GetSize(), turned.GetSpacing(), spacing, size, strict=True):
        yield length if length * working >= 0.999 * count * step else math.ceil(count * step / working - 1e-3)


@pytest.mark.parametrize(
    "kind",
    ["dicom", *(pytest.param(kind, marks=pytest.mark.exhaustive) for kind in (*formats.SUFFIXES, "4-D", "channels"))],
)
def test_headers_give_the_size_of_the_prepared_case(tmp_path, kind):
    """For any size, spacing and direction, and any grid of the network; also where they fit to a voxel."""
    generator = np.random.default_rng(0)
    for number in range(8):
        size, spacing = generator.integers(1, 12, 3), generator.uniform(0.3, 5, 3).round(generator.integers(1, 7))
        image = make_image(
            generator.integers(0, 99, size[::-1]).astype(np.int16), spacing, generator.uniform(-99, 99, 3).round(2),
            random_rotation(generator),
        )  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        paths = write(folder, kind, image)
        stated, read = volumes.read_grid(paths[0]), volumes.read_channels(paths)[0]
        assert stated.size == read.GetSize()
        for _ in range(10):
            window, working = generator.integers(1, 9, 3).tolist(), generator.uniform(0.3, 5, 3).round(2).tolist()
            if generator.random() < 0.5:
                working = (np.array(stated.oriented().spacing) * generator.choice([0.5, 1, 2, 3], 3)).tolist()
            expected = covering_size_of(stated, working, window)
            assert covering_size(read, working_grid(read, working, window)) == expected
            assert tuple(covering_by_turning(read, working, window)) == expected
            case = Case("x", paths[0], paths[0])
            exceeds = any(whole > 9 / 8 * length for whole, length in zip(expected, window, strict=True))
            assert extent.headers_exceed([case], working, window) is exceeds


def test_of_several_channels_in_one_file(tmp_path, reads):
    for seed, name in enumerate("abc"):
        write_channels(tmp_path / "data", name, seed=seed)
    data = training_data.load_data(settings(tmp_path / "data", volume=(8, 8, 8)))
    assert data.patches
    assert reads == {f"{name}.nii.gz": 2 for name in "abc"}  # the volume and the mask


@pytest.mark.parametrize("window", [(16, 16, 40), (40, 16, 16)])
def test_a_header_of_two_directions_is_decided_by_what_is_read(tmp_path, window):
    """Of a file whose sform turns the axes and whose qform does not, ITK takes either, by their codes."""
    for code in (1, 2):
        folder = tmp_path / str(code) / "data"
        folder.mkdir(parents=True)
        for index in range(3):
            for path in write_case(folder, f"C{index}", index, (40, 16, 16), (1, 1, 1), ".nii"):
                content = bytearray(path.read_bytes())
                struct.pack_into("<2h", content, 252, 1, code)
                struct.pack_into("<12f", content, 280, *(0, 0, 1, 0), *(0, -1, 0, 0), *(1, 0, 0, 0))
                path.write_bytes(content)
        run = settings(folder, spacing=(1, 1, 1), volume=window)
        data = training_data.load_data(run)
        centres = training_data.load_data(settings(folder, spacing=(1, 1, 1), volume=window, patches="off"))
        assert data.patches is extent.exceed(centres.training + centres.validation, window)
        assert data.patches is (window != ((16, 16, 40) if code == 1 else (40, 16, 16)))
        expected = (16, 16, 40) if code == 1 else (40, 16, 16)
        assert {case.covering_size for case in data.training} == {tuple(np.maximum(expected, window).tolist())}


def test_no_voxel_is_unpacked(tmp_path, monkeypatch):
    """Neither by ITK nor by the check that the compressed data are whole."""
    image, mask = write_case(tmp_path, "A", size=LARGE, suffix=".nii.gz")
    content = gzip.decompress(image.read_bytes())
    image.write_bytes(gzip.compress(content[:400]))
    for name in ("check_gzip", "check_deflated", "check_plain"):
        monkeypatch.setattr(integrity, name, lambda *arguments: pytest.fail("read the voxels"))
    assert extent.headers_exceed([Case("A", image, mask)], SPACING, SMALL) is True
    assert extent.headers_exceed([Case("A", image, mask)], SPACING, LARGE) is False


@pytest.mark.parametrize("damage", ["header", "voxels", "missing", "fifo", "slice"])
def test_a_case_that_cannot_be_read_is_reported_by_its_preparation(large, damage):
    """Whichever the others are prepared as."""
    path = large / "Case01.mhd"
    if damage == "header":
        path.write_text("NDims = 3\nDimSize = 900 900")
    elif damage == "voxels":
        path.with_suffix(".zraw").write_bytes(b"x")
    else:
        path.with_suffix(".zraw").unlink()
        if damage == "fifo":
            os.mkfifo(path.with_suffix(".zraw"))
    if damage == "slice":
        path.unlink()
        (large / "Case01").mkdir()
        (large / "Case01" / "x.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for volume in (SMALL, LARGE):
        with pytest.raises(InputErrors) as raised:
            training_data.load_data(settings(large, volume=volume))
        (error,) = raised.value.errors
        assert str(error.subject).startswith(str(large / "Case01"))


def test_a_dicom_file_by_itself_has_no_grid(tmp_path):
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.dcm: truncated or damaged: it is not a DICOM file"):
        volumes.read_grid(tmp_path / "x.dcm")


@pytest.mark.exhaustive
def test_without_an_image_library_the_cache_says_it(large):
    code = (
        "import sys; sys.modules['SimpleITK'] = None; from vnet_fast.data.training_data import load_data; "
        "from vnet_fast.run.configuration import Config; "
    )
    for volume in (SMALL, LARGE):
        run = settings(large, volume=volume)
        expected = training_data.load_data(run).patches
        code += f"assert load_data(Config(**{vars(run)!r})).patches is {expected}; "
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
