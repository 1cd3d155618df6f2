"""MetaImage: reads and verifies `.mha`, which holds header and voxels, and `.mhd`, a header beside a data file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import (
    CONVERT_ENCODING,
    Header,
    Placement,
    find_data_file,
    make_header,
    parse_integers,
    parse_numbers,
    reporting_damage,
    triple,
)
from vnet_fast.io.integrity import COPY_AGAIN
from vnet_fast.io.meta_fields import BYTE_ORDERS, DIRECTIONS, ORIGINS, SPACINGS, check_unknown, read_fields

ELEMENT_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}


def data_file(path: Path) -> Path:
    """Returns the file that holds the voxels: `path` itself, or the file that its header names."""
    return _data_file(path, read_fields(path)[0])


def _data_file(path: Path, fields: dict[str, str]) -> Path:
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(path, "its data is spread over several files", CONVERT_ENCODING)
    return find_data_file(path, name)


def read_header(path: Path) -> tuple[Header, Callable[[], None]]:
    """Reads and verifies the header of a volume.

    Returns:
        the header, and a function that verifies the file of the voxels, which raises an InputError too.

    Raises:
        InputError: if it is damaged, truncated or not supported.
    """
    fields, end = read_fields(path)
    with reporting_damage(path):
        _check_complete(path, fields)
        _check_encoding(path, fields)
        size = parse_integers(fields["DimSize"], *parse_integers(fields["NDims"], 1))
        channels = parse_integers(fields.get("ElementNumberOfChannels", "1"), 1)[0]
        skip = parse_integers(fields.get("HeaderSize", "0"), 1)[0]
        voxel_bytes = ELEMENT_BYTES.get(fields["ElementType"])
        if voxel_bytes is None:
            raise InputError(path, f"its ElementType {fields['ElementType']} is not supported", CONVERT_ENCODING)
        header = make_header(path, size, channels, voxel_bytes, lambda: [_find_placement(fields, len(size))])
        packed = parse_numbers(fields["CompressedDataSize"], 1)[0] if "CompressedDataSize" in fields else None
    return header, partial(_check_data, path, fields, header.data_bytes, end, skip, packed)


def _check_data(path: Path, fields: dict[str, str], expected: int, end: int, skip: int, packed: float | None) -> None:
    """Verifies the file that holds the voxels.

    Args:
        path: of the header.
        fields: of the header.
        expected: bytes of the uncompressed voxels.
        end: bytes of the header.
        skip: bytes before the voxels in a data file; -1 if the voxels are at its end.
        packed: bytes of the compressed voxels, if the header states them.
    """
    data = _data_file(path, fields)
    integrity.check_regular(data)
    compressed = _is_compressed(fields)
    if skip < -1 or (skip != 0 and (compressed or data == path)):
        raise InputError(path, f"its HeaderSize of {skip} is not supported", CONVERT_ENCODING)
    if skip == -1:
        skip = max(data.stat().st_size - expected, 0)
    skip = end if data == path else skip
    if not compressed:
        integrity.check_plain(data, skip, expected)
        return
    integrity.check_deflated(data, skip, expected, integrity.ZLIB)
    length = data.stat().st_size - skip
    if packed is not None and packed != length:
        cause = f"has {length} compressed bytes where its header states {packed:.15g}"
        raise InputError(data, cause, COPY_AGAIN)


def _check_complete(path: Path, fields: dict[str, str]) -> None:
    """Raises an error if a field may have been lost by damage."""
    check_unknown(path, fields)
    if fields["ElementDataFile"].upper() == "LOCAL" and "CompressedDataSize" not in fields and _is_compressed(fields):
        # ITK would unpack from the wrong position
        raise KeyError("CompressedDataSize")


def _is_compressed(fields: dict[str, str]) -> bool:
    return fields.get("CompressedData", "False").lower() == "true"


def _check_encoding(path: Path, fields: dict[str, str]) -> None:
    for name in ("BinaryData", "CompressedData", *BYTE_ORDERS):
        if fields.get(name, "True").lower() not in ("true", "false"):
            raise ValueError(f"{name} is {fields[name]!r}, not True or False")
    if fields.get("BinaryData", "True").lower() == "false":
        raise InputError(path, "its voxels are written as text", CONVERT_ENCODING)
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise InputError(path, f"its DistanceUnits are {fields['DistanceUnits']}, not mm", CONVERT_ENCODING)
    for suffix, neutral in (("Slope", 1), ("Offset", 0)):
        name = f"ElementToIntensityFunction{suffix}"
        if parse_numbers(fields.get(name, str(neutral)), 1) != [neutral]:
            # ITK would ignore the scaling
            cause = f"its header scales the voxels ({name} = {fields[name]}), which is not supported"
            raise InputError(path, cause, CONVERT_ENCODING)


def _find_placement(fields: dict[str, str], axes: int) -> Placement:
    spacing = next((fields[name] for name in SPACINGS if fields.get(name)), None)
    if spacing is None:
        raise KeyError("ElementSpacing")
    origin = next((fields[name] for name in ORIGINS if name in fields), None)
    direction = next((fields[name] for name in DIRECTIONS if name in fields), None)
    origins = [0.0] * axes if origin is None else parse_numbers(origin, axes)
    columns = np.eye(axes)
    if direction is not None:
        columns = np.array(parse_numbers(direction, axes * axes)).reshape(axes, axes)
    # the header lists the axes one after the other: the columns of the matrix
    matrix = columns.T[:3, :3]
    return Placement(triple(parse_numbers(spacing, axes)[:3]), triple(origins[:3]), tuple(matrix.ravel().tolist()))
