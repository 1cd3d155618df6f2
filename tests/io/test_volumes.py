import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image, write_case
from vnet_fast.errors import InputError
from vnet_fast.io import nifti, volumes, writing
from vnet_fast.io.formats import SUFFIXES
from vnet_fast.io.grid import Grid

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def ramp(size=(11, 9, 7)):
    return np.arange(np.prod(size), dtype=np.float32).reshape(size[::-1])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_every_format_reads_back(tmp_path, suffix, dtype):
    path = tmp_path / f"a volume é{suffix}"
    array = (ramp() % 200).astype(dtype)
    image = make_image(array, (0.5, 0.6, 3.0), (10, -20, 30), OBLIQUE)
    sitk.WriteImage(image, str(path), useCompression=suffix != ".nii")
    read = volumes.read_image(path)
    assert read.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), array)
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(read), name), getattr(Grid.of(image), name), atol=1e-5)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    path = tmp_path / "x.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([make_image(ramp())]), str(path))
    assert volumes.read_image(path).GetSize() == (11, 9, 7)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_several_volumes_in_one_file(tmp_path, suffix):
    sitk.WriteImage(sitk.JoinSeries([make_image(ramp((8, 7, 6)))] * 5), str(tmp_path / f"x{suffix}"))
    message = (
        r"is 4-D \(8 x 7 x 6 x 5\) with 1 value per voxel, not 3-D\. "
        r"Split it into its points in time or channels, and name one volume of it$"
    )
    for read in (volumes.read_image, volumes.read_mask):
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"x{suffix}")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("2-D", "is 2-D with 1 value per voxel, not 3-D with 1"),
        ("4-D", r"is 4-D \(11 x 9 x 7 x 2\) with 1 value per voxel, not 3-D\. Split it into its points in time or"),
        ("vector", "is 3-D with 2 values per voxel, not 3-D with 1"),
        ("complex", "is 3-D with 2 values per voxel, not 3-D with 1"),
    ],
)
def test_not_a_scalar_volume(tmp_path, kind, message):
    path = tmp_path / ("x.nii" if kind == "complex" else "x.mha")
    image = make_image(ramp())
    wrong = {
        "2-D": lambda: image[:, :, 0],
        "4-D": lambda: sitk.JoinSeries([image, image]),
        "vector": lambda: sitk.Compose(image, image),
        "complex": lambda: sitk.RealAndImaginaryToComplex(image, image),
    }[kind]()
    sitk.WriteImage(wrong, str(path))
    with pytest.raises(InputError, match=message):
        volumes.read_image(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii", ".nii.gz"])
def test_voxels_that_are_not_finite(tmp_path, suffix, dtype):
    """Of NIfTI too, where ITK reads them as 0."""
    path, array = tmp_path / f"x{suffix}", (ramp() % 200).astype(dtype)
    array[1, 2, 3] = np.nan
    array[2, 2, 2:4] = np.inf
    sitk.WriteImage(make_image(array), str(path))
    with pytest.raises(InputError, match="1 voxels are NaN and 2 infinite"):
        volumes.read_image(path)
    with pytest.raises(InputError, match=r"infinite|such as (nan|inf)"):
        volumes.read_mask(path)


def test_numbers_that_begin_between_the_pieces_of_a_file(tmp_path):
    """Its header says where voxels begin, at any byte, in either order of bytes."""
    values = np.ones(10, ">f8")
    values[[3, 7]] = np.nan, np.inf
    odd, content = nifti._NotFinite(">f8"), values.tobytes()
    for start in range(0, len(content), 7):
        odd.count(content[start : start + 7])
    assert (odd.nans, odd.infinite) == (1, 1)


@pytest.mark.exhaustive
@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux")
def test_peaks_of_memory(tmp_path):
    """What is read, and what it becomes: nothing else is as large as the volume."""
    # bytes per voxel, in rising order, because the peak of a process only rises
    expected = {("mask", "uint8"): 1, ("mask", "int16"): 3, ("image", "float32"): 4, ("mask", "float32"): 5,
                ("image", "int16"): 6}  # fmt: skip
    shape = (128, 256, 256)
    for dtype in ("uint8", "int16", "float32"):
        sitk.WriteImage(make_image(np.zeros(shape, dtype)), str(tmp_path / f"{dtype}.mha"))
    lines = ["from pathlib import Path", "from vnet_fast.io import volumes"]
    for kind, dtype in [("image", "small"), *expected]:
        path = tmp_path / f"{dtype}.mha"
        lines.append(f"volumes.read_{kind}({str(path)!r})")
        # unlike getrusage's, this peak is the process's own from its start
        lines.append(f"print(Path({str(STATUS)!r}).read_text().split('VmHWM:')[1].split()[0])")
    sitk.WriteImage(make_image(ramp()), str(tmp_path / "small.mha"))
    # what is freed goes back at once
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    command = [sys.executable, "-c", "\n".join(lines)]
    child = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    before, *peaks = (1024 * int(line) for line in child.stdout.split())
    per_voxel = dict(zip(expected, ((peak - before) / np.prod(shape) for peak in peaks), strict=True))
    assert per_voxel == pytest.approx(expected, abs=0.4)


@pytest.mark.parametrize("label", [-1, 0.5, 256, np.nan])
def test_labels_out_of_range(tmp_path, label):
    array = np.zeros((4, 4, 4), dtype=np.float32)
    array[1, 1, 1] = label
    sitk.WriteImage(make_image(array), str(tmp_path / "x.mha"))
    with pytest.raises(InputError, match="1 voxels have labels that are not whole numbers from 0 to 255, such as"):
        volumes.read_mask(tmp_path / "x.mha")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 3}, "its size is 4 4 3, that of image.mha is 4 4 4"),
        ({"spacing": (1, 1, 2)}, "its spacing is 1 1 2, that of image.mha is 1 1 1"),
        ({"origin": (0, 0.5, 0)}, "its origin is 0 0.5 0, that of image.mha is 0 0 0"),
        ({"direction": FLIPPED}, "its direction is -1 0 0 0 -1 0 0 0 1, that of image.mha is 1 0 0 0 1 0 0 0 1"),
    ],
    ids=["size", "spacing", "origin", "direction"],
)
def test_mask_on_another_grid(tmp_path, changed, message):
    changed = dict(changed)
    array = np.zeros((changed.pop("size", 4), 4, 4), dtype=np.uint8)
    sitk.WriteImage(make_image(array, **changed), str(tmp_path / "mask.mha"))
    with pytest.raises(InputError, match=message):
        volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")


def test_mask_beyond_the_tolerance(tmp_path):
    sitk.WriteImage(make_image(np.ones((4, 4, 4), np.uint8), origin=(0, 2e-3, 0)), str(tmp_path / "mask.mha"))
    with pytest.raises(InputError, match=r"its origin is 0 0\.002 0"):
        volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")


def test_mask_within_the_tolerance(tmp_path):
    sitk.WriteImage(make_image(np.ones((4, 4, 4), np.uint8), origin=(0, 5e-4, 0)), str(tmp_path / "mask.mha"))
    mask = volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")
    assert sitk.GetArrayViewFromImage(mask).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_keeps_the_grid_and_leaves_nothing_else(tmp_path, suffix):
    image = make_image(ramp(), (0.5, 0.6, 3.0), (10, -20, 30), OBLIQUE)
    mask = (ramp() % 3).astype(np.uint8)
    path = tmp_path / f"mask{suffix}"
    for array in (np.zeros_like(mask), mask):
        writing.write(array, Grid.of(image), path)
    read = volumes.read_mask(path, image, "image")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), mask)
    assert len(list(tmp_path.iterdir())) == (2 if suffix in (".mhd", ".nhdr") else 1)


@pytest.mark.parametrize("name", ["MASK.NII.GZ", "Mask.Mhd"])
def test_write_to_a_suffix_in_upper_case(tmp_path, name):
    image, mask = make_image(ramp()), (ramp() % 3).astype(np.uint8)
    writing.write(mask, Grid.of(image), tmp_path / name)
    assert name in {path.name for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_mask(tmp_path / name)), mask)


def test_write_to_an_unsupported_format(tmp_path):
    image = make_image(ramp())
    with pytest.raises(InputError, match=r"mask.png: not a supported format. Convert it to one of .nii.gz"):
        writing.write(ramp(), Grid.of(image), tmp_path / "mask.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    image, path = make_image(ramp()), tmp_path / "mask.nii.gz"
    path.write_bytes(b"previous")

    def fail(image, name, useCompression):  # noqa: N803 - SimpleITK's name
        with open(name, "wb") as file:
            file.write(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(InputError, match=r"mask.nii.gz: can't be written \(No space left on device\)"):
        writing.write(ramp().astype(np.uint8), Grid.of(image), path)
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("names", [None, {1: "core"}], ids=["plain", "named"])
@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_what_the_writer_of_nifti_does_not_say(tmp_path, monkeypatch, suffix, share, names):
    """On a full disk it returns as if all had been written."""
    image, path, original = make_image(ramp()), tmp_path / f"mask{suffix}", sitk.WriteImage
    path.write_bytes(b"previous")

    def write(image, name, useCompression):  # noqa: N803 - SimpleITK's name
        original(image, name, useCompression=useCompression)
        os.truncate(name, int(share * os.path.getsize(name)))

    monkeypatch.setattr(sitk, "WriteImage", write)
    with pytest.raises(InputError, match=r"can't be written \((an empty file|truncated).*Choose a folder with room"):
        writing.write((ramp() % 3).astype(np.uint8), Grid.of(image), path, names)
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_reading_in_threads_leaves_the_encoding_of_text(tmp_path):
    """ITK changes the locale of the process while it reads; Python would then take text for ASCII."""
    import locale
    from concurrent.futures import ThreadPoolExecutor

    before = locale.setlocale(locale.LC_CTYPE)
    paths = [write_case(tmp_path, f"Case{i}", seed=i, size=(40, 40, 40))[0] for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(volumes.read_image, paths * 20))
    assert locale.setlocale(locale.LC_CTYPE) == before
    # reading a series and writing also change the locale
    write_dicom(tmp_path / "series", [0, 3, 6])
    locale.setlocale(locale.LC_CTYPE, before)
    writing.write(
        np.zeros((3, 6, 8), np.uint8), Grid.of(volumes.read_image(tmp_path / "series")), tmp_path / "mask.mhd"
    )
    assert locale.setlocale(locale.LC_CTYPE) == before
