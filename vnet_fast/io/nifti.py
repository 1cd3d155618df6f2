"""NIfTI's headers, of version 1, in one file with their voxels: `.nii` and `.nii.gz`."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import Placement, check_placement, columns, make_header, words
from vnet_fast.io.integrity import COPY_AGAIN

HEADER_BYTES, NIFTI_2_BYTES = 348, 540
# where voxels begin: after the header and the four bytes that say whether more follows
MIN_OFFSET, MAX_OFFSET = 352, 1 << 30
# numbers a voxel and bits of each, by code
DATATYPES = {2: (1, 8), 4: (1, 16), 8: (1, 32), 16: (1, 32), 32: (2, 32), 64: (1, 64), 128: (3, 8), 256: (1, 8),
             512: (1, 16), 768: (1, 32), 1024: (1, 64), 1280: (1, 64), 1792: (2, 64), 2304: (4, 8)}  # fmt: skip
MAX_FORM_CODE = 5
# mm, by the lowest three bits of xyzt_units; unknown is taken for mm
UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
# share by which the lengths of the sform's columns may differ from the spacing
SAME_SPACING = 1e-3
# to left, posterior, superior from NIfTI's right, anterior, superior
TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Fields:
    """The fields that say how voxels are read and where they lie."""

    dim: tuple
    pixdim: tuple
    datatype: int
    bits: int
    offset: int
    slope: float
    intercept: float
    units: int
    qform: int
    sform: int
    quaternion: tuple
    quaternion_offset: tuple
    rows: tuple


def check(path):
    """Makes sure that a file is sound and whole.

    Returns:
        Header.

    Raises:
        InputError: if not, with the cause.
    """
    integrity.check_regular(path)
    compressed = str(path).lower().endswith(".gz")
    fields = _fields(path, _first_bytes(path, compressed))
    channels, bits = DATATYPES.get(fields.datatype, (0, 0))
    count = fields.dim[0]
    if not channels or fields.bits != channels * bits or not 1 <= count <= 7:
        cause = f"damaged header: {count} axes of type {fields.datatype} with {fields.bits} bits"
        raise InputError(path, cause, COPY_AGAIN)
    if any(map(math.isinf, (fields.slope, fields.intercept))):
        raise InputError(path, "damaged header: its voxels are to be scaled by infinity", COPY_AGAIN)
    header = make_header(
        path, fields.dim[1 : count + 1], channels, channels * bits // 8, lambda: _placements(path, fields)
    )
    measure = integrity.check_gzip if compressed else integrity.check_plain
    measure(path, fields.offset, header.data_bytes)
    return header


def _first_bytes(path, compressed):
    try:
        with gzip.open(path) if compressed else open(path, "rb") as file:
            return file.read(HEADER_BYTES)
    except EOFError:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"damaged gzip data ({error})", COPY_AGAIN) from None


def _fields(path, content):
    sizes = {order: struct.unpack_from(order + "i", content.ljust(4, b"\0"))[0] for order in "<>"}
    order = next((order for order, size in sizes.items() if size == HEADER_BYTES), None)
    if NIFTI_2_BYTES in sizes.values():
        raise InputError(path, "NIfTI of version 2, which is not read", "Convert it to version 1")
    if order is None or len(content) < HEADER_BYTES:
        raise InputError(path, "not a NIfTI file", COPY_AGAIN)
    magic = content[344:348]
    if magic == b"ni1\0":
        raise InputError(path, "its voxels are in another file", "Convert it to one .nii file")
    if magic != b"n+1\0":
        raise InputError(path, "not a NIfTI file: it lacks the magic number", COPY_AGAIN)

    def read(form, place):
        return struct.unpack_from(order + form, content, place)

    offset, slope, intercept = read("3f", 108)
    if not MIN_OFFSET <= offset < MAX_OFFSET or offset != int(offset):
        raise InputError(path, f"damaged header: its voxels begin at byte {offset:.15g}", COPY_AGAIN)
    datatype, bits = read("2h", 70)
    qform, sform = read("2h", 252)
    return _Fields(
        dim=read("8h", 40),
        pixdim=read("8f", 76),
        datatype=datatype,
        bits=bits,
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        units=read("B", 123)[0],
        qform=qform,
        sform=sform,
        quaternion=read("3f", 256),
        quaternion_offset=read("3f", 268),
        rows=read("12f", 280),
    )


def _placements(path, fields):
    """Where the voxels lie by the sform, by the qform, or by neither: both may be given."""
    if not (0 <= fields.qform <= MAX_FORM_CODE and 0 <= fields.sform <= MAX_FORM_CODE):
        cause = f"damaged header: qform code {fields.qform}, sform code {fields.sform}"
        raise InputError(path, cause, COPY_AGAIN)
    scale = UNITS.get(fields.units & 7)
    if scale is None:
        raise InputError(path, f"damaged header: unit {fields.units & 7} of length", COPY_AGAIN)
    spacing = tuple(length * scale for length in fields.pixdim[1:4])
    found = []
    if fields.sform:
        rows = np.array(fields.rows, dtype=np.float64).reshape(3, 4) * scale
        lengths, direction = columns((TO_LPS[:, None] * rows[:, :3]).T)
        found.append(Placement(spacing, tuple((TO_LPS * rows[:, 3]).tolist()), direction))
        check_placement(path, found[0])
        if not np.allclose(lengths, spacing, rtol=SAME_SPACING, atol=0):
            cause = f"its spacing is {words(spacing)} mm by its pixdim and {words(lengths)} mm by its sform"
            raise InputError(path, cause, "Export it again, or mend its header")
    if fields.qform:
        origin = TO_LPS * np.array(fields.quaternion_offset) * scale
        direction = TO_LPS[:, None] * _rotation(fields.quaternion, fields.pixdim[0])
        found.append(Placement(spacing, tuple(origin.tolist()), tuple(direction.ravel().tolist())))
    return found or [Placement(spacing, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))]


def _rotation(quaternion, handedness):
    """The matrix of a unit quaternion a + bi + cj + dk of which b, c, d are stored."""
    b, c, d = quaternion
    rest = 1 - (b * b + c * c + d * d)
    # by the standard's own code: what is off by rounding is a half turn
    if rest < 1e-7 and (length := math.sqrt(b * b + c * c + d * d)) > 0:
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(max(rest, 0)) if rest == rest else math.nan
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    return matrix * [1, 1, -1 if handedness < 0 else 1]
