"""NIfTI: reads and verifies files of version 1 that hold header and voxels, `.nii` and `.nii.gz`."""

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import (
    CORRECT_HEADER,
    IDENTITY,
    Header,
    Placement,
    check_placement,
    format_numbers,
    make_header,
    not_finite,
    split_steps,
    triple,
)
from vnet_fast.io.integrity import COPY_AGAIN

IMAGE_IO = "NiftiImageIO"
HEADER_BYTES, NIFTI_2_BYTES = 348, 540
# where voxels may begin: after the header and the four bytes that tell whether extensions follow
MIN_OFFSET, MAX_OFFSET = 352, 1 << 30
# values per voxel and bits of each, by code
DATATYPES = {2: (1, 8), 4: (1, 16), 8: (1, 32), 16: (1, 32), 32: (2, 32), 64: (1, 64), 128: (3, 8), 256: (1, 8),
             512: (1, 16), 768: (1, 32), 1024: (1, 64), 1280: (1, 64), 1792: (2, 64), 2304: (4, 8)}  # fmt: skip
# the types of voxels that may be NaN, by code
FLOATS = {16: "f4", 64: "f8"}
MAX_FORM_CODE = 5
# mm, by the lowest three bits of xyzt_units; an unknown unit is taken for mm
UNITS = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}
# largest relative difference between the lengths of the sform's columns and the spacing
SPACING_TOLERANCE = 1e-3
# largest b² + c² + d² beyond the 1 of a unit quaternion. Half a turn reaches 1, and rounding exceeds it: by 1e-6 in
# float32, and by 2e-4 in programs that write four digits
QUATERNION_TOLERANCE = 1e-3
# from NIfTI's axes right, anterior, superior to left, posterior, superior
TO_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Fields:
    """The fields of a header that determine how voxels are read and where they lie."""

    order: str
    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    datatype: int
    bits: int
    offset: int
    slope: float
    intercept: float
    units: int
    qform: int
    sform: int
    quaternion: tuple[float, float, float]
    quaternion_offset: tuple[float, float, float]
    rows: tuple[float, ...]


def read_header(path: Path) -> tuple[Header, Callable[[], None]]:
    """Reads and verifies the header of a file.

    Returns:
        the header, and a function that verifies the voxels, which raises an InputError too.

    Raises:
        InputError: if it is damaged, truncated or not supported.
    """
    integrity.check_regular(path)
    compressed = str(path).lower().endswith(".gz")
    fields = _parse_fields(path, _read_first_bytes(path, compressed))
    channels, bits = DATATYPES.get(fields.datatype, (0, 0))
    count = fields.dim[0]
    if not channels or fields.bits != channels * bits or not 1 <= count <= 7:
        cause = f"damaged header: {count} axes of type {fields.datatype} with {fields.bits} bits"
        raise InputError(path, cause, COPY_AGAIN)
    if any(map(math.isinf, (fields.slope, fields.intercept))):
        raise InputError(path, "damaged header: it scales the voxels by infinity", COPY_AGAIN)
    header = make_header(
        path, fields.dim[1 : count + 1], channels, channels * bits // 8, lambda: _find_placements(path, fields),
        several=True,
    )  # fmt: skip
    return header, partial(_verify_voxels, path, compressed, fields, header.data_bytes)


def _verify_voxels(path: Path, compressed: bool, fields: _Fields, expected: int) -> None:
    """Raises an InputError unless there are so many bytes of voxels, which are finite; ITK reads those that are not
    as 0.
    """
    check = integrity.check_gzip if compressed else integrity.check_plain
    if fields.datatype not in FLOATS:
        check(path, fields.offset, expected)
        return
    odd = _NotFinite(fields.order + FLOATS[fields.datatype])
    check(path, fields.offset, expected, odd.count)
    if odd.nans or odd.infinite:
        raise not_finite(path, odd.nans, odd.infinite)


class _NotFinite:
    """Counts the numbers in the bytes of a type that are not finite."""

    def __init__(self, dtype: str) -> None:
        self.dtype, self.rest, self.nans, self.infinite = np.dtype(dtype), b"", 0, 0

    def count(self, data: bytes) -> None:
        data = self.rest + data
        whole = len(data) - len(data) % self.dtype.itemsize
        values, self.rest = np.frombuffer(data[:whole], self.dtype), data[whole:]
        if not np.isfinite(values).all():
            self.nans += int(np.isnan(values).sum())
            self.infinite += int(np.isinf(values).sum())


def _read_first_bytes(path: Path, compressed: bool) -> bytes:
    try:
        with gzip.open(path) if compressed else open(path, "rb") as file:
            return file.read(HEADER_BYTES)
    except EOFError:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"damaged gzip data ({error})", COPY_AGAIN) from None


def _parse_fields(path: Path, content: bytes) -> _Fields:
    sizes = {order: struct.unpack_from(order + "i", content.ljust(4, b"\0"))[0] for order in "<>"}
    order = next((order for order, size in sizes.items() if size == HEADER_BYTES), None)
    if NIFTI_2_BYTES in sizes.values():
        raise InputError(path, "NIfTI version 2, which is not supported", "Convert it to version 1")
    if order is None or len(content) < HEADER_BYTES:
        raise InputError(path, "not a NIfTI file", COPY_AGAIN)
    magic = content[344:348]
    if magic == b"ni1\0":
        raise InputError(path, "its voxels are in another file", "Convert it to one .nii file")
    if magic != b"n+1\0":
        raise InputError(path, "not a NIfTI file: it lacks the magic number", COPY_AGAIN)

    def read(numbers: str, position: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + numbers, content, position)

    offset, slope, intercept = read("3f", 108)
    if not MIN_OFFSET <= offset < MAX_OFFSET or offset != int(offset):
        raise InputError(path, f"damaged header: its voxels begin at byte {offset:.15g}", COPY_AGAIN)
    datatype, bits = read("2h", 70)
    qform, sform = read("2h", 252)
    return _Fields(
        order=order,
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


def _find_placements(path: Path, fields: _Fields) -> list[Placement]:
    """Returns the placements by sform and by qform, of which both may be given, or a default if neither is."""
    if not (0 <= fields.qform <= MAX_FORM_CODE and 0 <= fields.sform <= MAX_FORM_CODE):
        cause = f"damaged header: qform code {fields.qform}, sform code {fields.sform}"
        raise InputError(path, cause, COPY_AGAIN)
    scale = UNITS.get(fields.units & 7)
    if scale is None:
        raise InputError(path, f"damaged header: its unit of length has the code {fields.units & 7}", COPY_AGAIN)
    spacing = triple(length * scale for length in fields.pixdim[1:4])
    placements = []
    if fields.sform:
        rows = np.array(fields.rows, dtype=np.float64).reshape(3, 4) * scale
        lengths, direction = split_steps((TO_LPS[:, None] * rows[:, :3]).T)
        placements.append(Placement(spacing, triple((TO_LPS * rows[:, 3]).tolist()), direction))
        check_placement(path, placements[0])
        if not np.allclose(lengths, spacing, rtol=SPACING_TOLERANCE, atol=0):
            by_pixdim, by_sform = format_numbers(spacing), format_numbers(lengths)
            cause = f"its spacing is {by_pixdim} mm by its pixdim and {by_sform} mm by its sform"
            raise InputError(path, cause, CORRECT_HEADER)
    if fields.qform:
        _check_quaternion(path, fields.quaternion)
        origin = TO_LPS * np.array(fields.quaternion_offset) * scale
        matrix = TO_LPS[:, None] * _rotation_matrix(fields.quaternion, fields.pixdim[0])
        placements.append(Placement(spacing, triple(origin.tolist()), tuple(matrix.ravel().tolist())))
    return placements or [Placement(spacing, (0.0, 0.0, 0.0), IDENTITY)]


def _check_quaternion(path: Path, quaternion: tuple[float, float, float]) -> None:
    """Raises an InputError unless b, c and d can be of a unit quaternion; ITK would scale any others silently."""
    excess = sum(number * number for number in quaternion) - 1
    # not >, so that NaN is refused too
    if not excess <= QUATERNION_TOLERANCE:
        cause = f"its quaternion is {format_numbers(quaternion)}, longer than 1, which is no rotation"
        raise InputError(path, cause, CORRECT_HEADER)


def _rotation_matrix(quaternion: tuple[float, float, float], handedness: float) -> np.ndarray:
    """Returns the (3, 3) matrix of a unit quaternion a + bi + cj + dk, of which b, c and d are stored.

    Args:
        quaternion: b, c, d.
        handedness: negative if the third axis is flipped.

    Source:
        `nifti_quatern_to_mat44` of the NIfTI library.
    """
    b, c, d = quaternion
    rest = 1 - (b * b + c * c + d * d)
    # as in the library: a rotation by half a turn, if a is zero but for rounding
    if rest < 1e-7 and (length := math.sqrt(b * b + c * c + d * d)) > 0:
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(max(rest, 0))
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    return matrix * [1, 1, -1 if handedness < 0 else 1]
