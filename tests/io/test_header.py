"""Headers as several programs write them, headers that must be refused, and the lengths of the data behind them."""

import gzip
import struct
import tracemalloc
import zlib
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image
from vnet_fast.errors import InputError
from vnet_fast.io import formats, integrity, volumes
from vnet_fast.io.grid import Grid
from vnet_fast.io.header import Header, Placement

ARRAY = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 20
SPACING, ORIGIN = (0.5, 0.75, 3.0), (10.0, -20.0, 30.0)
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def assert_reads(path, spacing=SPACING, origin=ORIGIN, direction=OBLIQUE, array=ARRAY):
    image = volumes.read_image(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    for name, expected in (("spacing", spacing), ("origin", origin), ("direction", direction)):
        np.testing.assert_allclose(getattr(Grid.of(image), name), expected, atol=1e-5)
    # the header states what is read
    stated = formats.verify_volume(path)
    assert stated.size == image.GetSize()
    for name, expected in (("spacing", spacing), ("origin", origin), ("direction", direction)):
        np.testing.assert_allclose(getattr(stated.placements[0], name), expected, atol=1e-3)


META = """NDims = 3
DimSize = 5 4 3
ElementSpacing = 0.5 0.75 3
ElementType = MET_SHORT
ElementDataFile = x.raw
"""


@pytest.mark.parametrize(
    ("old", "new", "placement", "data"),
    [
        ("", "", {}, ARRAY.tobytes()),
        ("NDims = 3", "NDims = 3\nPatient Name = Müller = Meier\nOffset = 10 -20 30\nTransformMatrix = "
         "1 0 0 0 1 0 0 0 1\nBinaryData = True\nCompressedData = False\nElementByteOrderMSB = False",
         {"origin": ORIGIN}, ARRAY.tobytes()),
        ("DimSize", "Position = 10 -20 30\nDimSize", {"origin": ORIGIN}, ARRAY.tobytes()),
        ("DimSize", "Rotation = 0.96 0.28 0 -0.28 0.96 0 0 0 1\nDimSize", {"direction": OBLIQUE}, ARRAY.tobytes()),
        ("ElementSpacing", "ElementSize", {}, ARRAY.tobytes()),
        ("DimSize", "BinaryDataByteOrderMSB = True\nDimSize", {}, ARRAY.byteswap().tobytes()),
        ("DimSize", "HeaderSize = 7\nDimSize", {}, b"1234567" + ARRAY.tobytes()),
        ("DimSize", "HeaderSize = -1\nDimSize", {}, b"1234567" + ARRAY.tobytes()),
        ("DimSize", "CompressedData = True\nDimSize", {}, zlib.compress(ARRAY.tobytes())),
        ("DimSize", "DistanceUnits = mm\nElementToIntensityFunctionSlope = 1\nDimSize", {}, ARRAY.tobytes()),
        ("\n", "\r\n", {}, ARRAY.tobytes()),
    ],
    ids=["by hand", "fields of others", "position", "rotation", "size for spacing", "big-endian", "header size",
         "at the end", "compressed", "neutral", "lines of Windows"],
)  # fmt: skip
def test_metaimage(tmp_path, old, new, placement, data):
    (tmp_path / "x.mhd").write_bytes(META.replace(old, new).encode())
    (tmp_path / "x.raw").write_bytes(data)
    assert_reads(tmp_path / "x.mhd", **{"origin": (0, 0, 0), "direction": IDENTITY, **placement})


def test_metaimage_with_a_fourth_axis_of_one(tmp_path):
    sitk.WriteImage(sitk.JoinSeries([make_image(ARRAY, SPACING, ORIGIN, OBLIQUE)]), str(tmp_path / "x.mha"))
    assert_reads(tmp_path / "x.mha")


@pytest.mark.parametrize(
    ("old", "new", "placement"),
    [
        ("", "", {}),
        ("left-posterior-superior", "LPS", {}),
        ("left-posterior-superior", "right-anterior-superior",
         {"origin": (-10, 20, 30), "direction": (-0.96, 0.28, 0, -0.28, -0.96, 0, 0, 0, 1)}),
        ("kinds: domain domain domain", 'kinds: space space space\nspace units: "mm" "mm" "mm"', {}),
        ("space origin: (10,-20,30)\n", "", {"origin": (0, 0, 0)}),
        ("encoding: raw", "ENCODING: RAW\nmy key:=sizes: 1 1 1", {}),
        ("encoding: raw", "encoding: raw\ncontent: a:=b\nbyte skip:=4\nspace units:=um", {}),
        ("space: left-posterior-superior", "space dimension: 3", {}),
    ],
    ids=["as written", "short", "right-anterior-superior", "units", "no origin", "keys", "a key or a field", "unnamed"],
)  # fmt: skip
def test_nrrd(tmp_path, old, new, placement):
    path = tmp_path / "x.nrrd"
    sitk.WriteImage(make_image(ARRAY, SPACING, ORIGIN, OBLIQUE), str(path))
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    assert_reads(path, **placement)


def test_nrrd_with_spacings_alone(tmp_path):
    text = "NRRD0001\ntype: short\ndimension: 3\nsizes: 5 4 3\nspacings: 0.5 0.75 3\nendian: big\nencoding: raw\n\n"
    (tmp_path / "x.nrrd").write_bytes(text.encode() + ARRAY.byteswap().tobytes())
    assert_reads(tmp_path / "x.nrrd", origin=(0, 0, 0), direction=IDENTITY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('space units: "m" "m" "m"', "its space units are"),
        ("byte skip: 4", "its header skips part of the data"),
        ("type: short", "type is given twice"),
        ("strange: 1", "'strange: 1' is not a known field"),
        # a field for ITK, because `: ` comes first
        ("byte skip: 4 :=", "its header skips part of the data"),
    ],
)
def test_nrrd_that_is_refused(tmp_path, text, message):
    path = tmp_path / "x.nrrd"
    sitk.WriteImage(make_image(ARRAY, SPACING, ORIGIN, OBLIQUE), str(path))
    path.write_bytes(path.read_bytes().replace(b"encoding", text.encode() + b"\nencoding"))
    with pytest.raises(InputError, match=message):
        volumes.read_image(path)


@pytest.mark.parametrize("kind", ["vector", "RGB-color", "time"])
def test_nrrd_whose_axes_are_not_all_of_space(tmp_path, kind):
    path = tmp_path / "x.nrrd"
    sitk.WriteImage(make_image(ARRAY, SPACING, ORIGIN, OBLIQUE), str(path))
    path.write_bytes(path.read_bytes().replace(b"kinds: domain", b"kinds: " + kind.encode()))
    with pytest.raises(
        InputError, match=f"is 3-D with axes of the kinds {kind.lower()} domain domain, not 3-D with spatial axes"
    ):
        volumes.read_image(path)


def write_nifti(folder, *changes, suffix=".nii", direction=OBLIQUE):
    """Writes a NIfTI file with numbers of its header replaced; a change is (format, position, values…)."""
    path = folder / "x.nii"
    sitk.WriteImage(make_image(ARRAY, SPACING, ORIGIN, direction), str(path))
    content = bytearray(path.read_bytes())
    for form, place, *values in changes:
        struct.pack_into(form, content, place, *values)
    path.write_bytes(content)
    if suffix == ".nii.gz":
        path.with_suffix(".nii.gz").write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    return path.with_suffix(suffix)


QFORM, SFORM, QUATERNION = 252, 254, 256
METRES = [("<B", 123, 1), ("<3f", 80, 0.0005, 0.00075, 0.003), ("<h", SFORM, 0), ("<3f", 268, -0.01, 0.02, 0.03)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], {}),
        ([("<h", QFORM, 0)], {}),
        ([("<h", SFORM, 0)], {}),
        ([("<h", QFORM, 0), ("<h", SFORM, 0)], {"origin": (0, 0, 0), "direction": IDENTITY}),
        (METRES, {}),
        ([("<f", 112, float("nan")), ("<f", 116, float("nan"))], {}),
        ([("<f", 112, 2.0), ("<f", 116, 1.0)], {"array": ARRAY * 2 + 1}),
        ([("<h", 40, 5)], {}),
    ],
    ids=["both forms", "sform", "qform", "neither", "metres", "scale NaN", "scaled", "five axes"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_write_nifti(tmp_path, changes, expected, suffix):
    assert_reads(write_nifti(tmp_path, *changes, suffix=suffix), **expected)


@pytest.mark.parametrize(
    "angles", [(0, 0, 0), (0.3, -0.2, 0.1), (3.1, 0.4, 0), (np.pi, 0, 0), (0, np.pi, 0), (1, 2, 3)], ids=str
)
@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("form", [QFORM, SFORM])
def test_nifti_directions(tmp_path, angles, flip, form):
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*map(float, angles))
    direction = np.array(transform.GetMatrix()).reshape(3, 3) * [1, 1, flip]
    assert_reads(write_nifti(tmp_path, ("<h", form, 0), direction=direction.ravel()), direction=direction.ravel())


def test_nifti_in_the_other_order_of_bytes(tmp_path):
    path = write_nifti(tmp_path)
    content = bytearray(path.read_bytes())
    for form, first, count in (("i", 0, 1), ("h", 40, 8), ("f", 56, 3), ("h", 68, 4), ("f", 76, 11), ("h", 120, 1),
                               ("f", 124, 4), ("i", 140, 2), ("h", 252, 2), ("f", 256, 18)):  # fmt: skip
        struct.pack_into(f">{count}{form}", content, first, *struct.unpack_from(f"<{count}{form}", content, first))
    content[352:] = ARRAY.byteswap().tobytes()
    path.write_bytes(content)
    assert_reads(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<i", 0, 540), "NIfTI version 2, which is not supported. Convert it to version 1"),
        (("4s", 344, b"ni1\0"), "its voxels are in another file"),
        (("4s", 344, b"\0\0\0\0"), "it lacks the magic number"),
        (("<f", 108, 351.0), "its voxels begin at byte 351"),
        (("<f", 108, 352.5), "its voxels begin at byte 352.5"),
        (("<f", 112, float("inf")), "it scales the voxels by infinity"),
        (("<B", 123, 7), "its unit of length has the code 7"),
        (("<h", QFORM, 9), "qform code 9"),
        (("<h", SFORM, -1), "sform code -1"),
    ],
)
def test_nifti_that_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        volumes.read_image(write_nifti(tmp_path, change))


@pytest.mark.parametrize("quaternion", [(5, 5, 5), (1, 0.05, 0), (0, -1e20, 0), (0, 0, float("nan"))], ids=str)
def test_nifti_whose_quaternion_is_no_rotation(tmp_path, quaternion):
    change = ("<3f", QUATERNION, *quaternion)
    message = r"x\.nii: its quaternion is .*, longer than 1, which is no rotation\. Correct the header"
    for more in ([], [("<h", SFORM, 0)]):
        with pytest.raises(InputError, match=message):
            volumes.read_image(write_nifti(tmp_path, change, *more))
    # it does not count without its code
    assert_reads(write_nifti(tmp_path, change, ("<h", QFORM, 0)))


@pytest.mark.parametrize("excess", [1e-7, 1e-6, 4e-4])
def test_nifti_with_half_a_turn_that_is_rounded(tmp_path, excess):
    quaternion = np.sqrt(0.5 * (1 + excess)), -np.sqrt(0.5 * (1 + excess)), 0
    path = write_nifti(tmp_path, ("<3f", QUATERNION, *quaternion), ("<h", SFORM, 0))
    direction = np.diag([-1, -1, 1]) @ [[0, -1, 0], [-1, 0, 0], [0, 0, -1]]
    assert_reads(path, direction=direction.ravel())


def test_itk_must_read_what_the_header_states(tmp_path, monkeypatch):
    path = write_nifti(tmp_path)
    for name, other in (("size", (5, 4, 2)), ("spacing", (1.0, 0.75, 3.0)), ("origin", (0.0, 0.0, 0.0))):
        fields = {"size": (5, 4, 3), "spacing": SPACING, "origin": ORIGIN, "direction": OBLIQUE, name: other}
        stated = Header(fields.pop("size"), 120, (Placement(**fields),))
        monkeypatch.setattr(formats, "verify_volume", lambda path, stated=stated: stated)
        with pytest.raises(InputError, match=f"its header can be read in two ways: {name}"):
            volumes.read_image(path)


@pytest.mark.parametrize("check", [integrity.check_gzip, partial(integrity.check_deflated, wrapper=integrity.GZIP)])
def test_a_bomb_is_not_unpacked(tmp_path, check):
    (tmp_path / "x").write_bytes(gzip.compress(bytes(200 << 20), 1))
    tracemalloc.start()
    with pytest.raises(InputError, match="longer than the 1000 bytes that its header states"):
        check(tmp_path / "x", 0, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("count", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("wrapper", [integrity.ZLIB, integrity.GZIP])
def test_lengths_of_streams(tmp_path, count, wrapper):
    content = np.random.default_rng(0).integers(0, 9, count, np.uint8).tobytes()
    path = tmp_path / "x"
    path.write_bytes(b"head" + (zlib.compress if wrapper == integrity.ZLIB else gzip.compress)(content, 1))
    integrity.check_deflated(path, 4, count, wrapper)
    with pytest.raises(InputError, match=r"truncated: \d+ bytes where its header states"):
        integrity.check_deflated(path, 4, count + 1, wrapper)
    if count:
        with pytest.raises(InputError, match=f"longer than the {count - 1} bytes"):
            integrity.check_deflated(path, 4, count - 1, wrapper)
