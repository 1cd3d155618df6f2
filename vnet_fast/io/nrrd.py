"""NRRD: reads and verifies `.nrrd`, which holds header and voxels, and `.nhdr`, a header beside a data file."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import (
    CONVERT_ENCODING,
    CORRECT_HEADER,
    IDENTITY,
    MAX_LINE,
    MAX_LINES,
    SCALAR_VOLUME,
    Header,
    Placement,
    find_data_file,
    make_header,
    parse_integers,
    parse_numbers,
    reporting_damage,
    scalar_volume_error,
    split_steps,
    triple,
)
from vnet_fast.io.integrity import COPY_AGAIN

MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
# the supported spaces, and the signs that turn their axes to left, posterior, superior
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
SPATIAL_KINDS = {"domain", "space", "none", "???"}
# of an axis along which whole volumes follow each other
SEVERAL_KINDS = {"time", "list"}
MILLIMETRES = ("mm", "millimeter", "millimetre", "")
_TYPES = {
    1: "signed char,int8,int8_t,uchar,unsigned char,uint8,uint8_t",
    2: "short,short int,signed short,signed short int,int16,int16_t,"
    "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    4: "int,signed int,int32,int32_t,uint,unsigned int,uint32,uint32_t,float",
    8: "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t,"
    "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t,double",
}
ELEMENT_BYTES = {name: size for size, names in _TYPES.items() for name in names.split(",")}
SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "axismins": "axis mins",
            "axismaxs": "axis maxs", "centerings": "centers", "sampleunits": "sample units", "oldmin": "old min",
            "oldmax": "old max"}  # fmt: skip
KNOWN = {*SYNONYMS.values(), "dimension", "type", "block size", "blocksize", "encoding", "endian", "content", "min",
         "max", "number", "sizes", "spacings", "thicknesses", "labels", "units", "kinds", "space", "space dimension",
         "space units", "space origin", "space directions", "measurement frame"}  # fmt: skip


def data_file(path: Path) -> Path:
    """Returns the file that holds the voxels: `path` itself, or the file that its header names."""
    return _data_file(path, _read_fields(path)[0])


def _data_file(path: Path, fields: dict[str, str]) -> Path:
    return find_data_file(path, fields["data file"]) if "data file" in fields else path


def read_header(path: Path) -> tuple[Header, Callable[[], None]]:
    """Reads and verifies the header of a volume.

    Returns:
        the header, and a function that verifies the file of the voxels, which raises an InputError too.

    Raises:
        InputError: if it is damaged, truncated or not supported.
    """
    fields, end = _read_fields(path)
    if "data file" in fields and (fields["data file"].upper().startswith("LIST") or "%" in fields["data file"]):
        raise InputError(path, "its data is spread over several files", CONVERT_ENCODING)
    with reporting_damage(path):
        size = parse_integers(fields["sizes"], *parse_integers(fields["dimension"], 1))
        voxel_bytes = ELEMENT_BYTES.get(fields["type"].lower())
        if voxel_bytes is None:
            raise InputError(path, f"its type {fields['type']} is not supported", CONVERT_ENCODING)
        if voxel_bytes > 1 and fields["endian"].lower() not in ("little", "big"):
            raise ValueError(f"endian is {fields['endian']!r}, not little or big")
        _check_axes(path, size, fields)
        header = make_header(path, size, 1, voxel_bytes, lambda: [_find_placement(path, fields)])
        encoding = fields["encoding"].lower()
    return header, partial(_check_data, path, fields, header.data_bytes, end, encoding)


def _check_data(path: Path, fields: dict[str, str], expected: int, end: int, encoding: str) -> None:
    """Verifies the file that holds the voxels.

    Args:
        path: of the header.
        fields: of the header.
        expected: bytes of the uncompressed voxels.
        end: bytes of the header.
        encoding: of the voxels.
    """
    if any(fields.get(name, "0") != "0" for name in ("line skip", "byte skip")):
        raise InputError(path, "its header skips part of the data, which is not supported", CONVERT_ENCODING)
    data = _data_file(path, fields)
    integrity.check_regular(data)
    skip = end if data == path else 0
    if encoding == "raw":
        integrity.check_plain(data, skip, expected)
    elif encoding in ("gzip", "gz"):
        integrity.check_deflated(data, skip, expected, integrity.GZIP)
    else:
        raise InputError(path, f"its encoding {fields['encoding']} is not supported", CONVERT_ENCODING)


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Reads the fields of a header.

    Returns:
        dict from the name of a field to its text; and the number of bytes of the header.
    """
    integrity.check_regular(path)
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        if not MAGIC.fullmatch(file.readline(MAX_LINE)):
            raise InputError(path, "not an NRRD file", COPY_AGAIN)
        for _ in range(MAX_LINES):
            line = file.readline(MAX_LINE)
            text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            if not line.endswith(b"\n") and not (line and "data file" in fields):
                break
            if not text:
                return fields, file.tell()
            if not text.startswith("#") and not _is_key_with_value(text):
                _add_field(path, fields, text)
        if not line and "data file" in fields:
            # a detached header may end without an empty line
            return fields, file.tell()
    raise InputError(path, "truncated: its header has no end", COPY_AGAIN)


def _is_key_with_value(line: str) -> bool:
    """Returns whether a line is a `key:=value` of any program: as for ITK, the first of `: ` and `:=` decides."""
    key, field = line.find(":="), line.find(": ")
    return key >= 0 and not 0 <= field < key


def _add_field(path: Path, fields: dict[str, str], line: str) -> None:
    name, colon, value = line.partition(":")
    name = SYNONYMS.get(name.lower(), name.lower())
    if not colon or name not in KNOWN:
        shown = line[:40].encode("ascii", "backslashreplace").decode()
        raise InputError(path, f"damaged header: {shown!r} is not a known field", CORRECT_HEADER)
    if name in fields:
        raise InputError(path, f"damaged header: {name} is given twice", "Keep one of the two")
    fields[name] = value.strip()


def _check_axes(path: Path, size: Sequence[int], fields: dict[str, str]) -> None:
    """Raises an InputError unless there are three spatial axes; others may be channels or time."""
    kinds = fields.get("kinds", "").lower().split()
    others = set(kinds) - SPATIAL_KINDS
    if len(size) != 3 and others <= SEVERAL_KINDS:
        raise scalar_volume_error(path, size, 1)
    if others or len(kinds) not in (0, len(size)):
        cause = f"is {len(size)}-D with axes of the kinds {' '.join(kinds)}, not 3-D with spatial axes"
        raise InputError(path, cause, SCALAR_VOLUME)


def _find_placement(path: Path, fields: dict[str, str]) -> Placement:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in MILLIMETRES for unit in units):
        raise InputError(path, f"its space units are {fields['space units']}, not mm", CONVERT_ENCODING)
    if "space directions" not in fields:
        if "space" in fields:
            raise KeyError("space directions")
        return Placement(triple(parse_numbers(fields["spacings"], 3)), (0.0, 0.0, 0.0), IDENTITY)
    # a space of three axes without names is taken for ITK's own, as ITK does
    is_unnamed = "space" not in fields and fields.get("space dimension") == "3"
    signs = (1, 1, 1) if is_unnamed else SPACES.get(fields["space"].lower())
    if signs is None:
        raise InputError(path, f"its space {fields['space']} is not supported", CONVERT_ENCODING)
    steps = _parse_vectors(fields["space directions"], 3)
    spacing, direction = split_steps([_apply_signs(signs, step) for step in steps])
    origin = _parse_vectors(fields.get("space origin", "(0,0,0)"), 1)[0]
    return Placement(spacing, _apply_signs(signs, origin), direction)


def _parse_vectors(text: str, count: int) -> list[list[float]]:
    """Parses a text such as (1,0,0) (0,1,0); raises a ValueError if it has anything else."""
    parts = re.findall(r"\(([^()]*)\)", text)
    if len(parts) != count or re.sub(r"\([^()]*\)", "", text).strip():
        raise ValueError(f"{count} vectors are needed, got {text!r}")
    vectors = [parse_numbers(part.replace(",", " "), 3) for part in parts]
    if any(part.count(",") != 2 for part in parts) or not all(math.isfinite(n) for v in vectors for n in v):
        raise ValueError(f"{text!r} are not vectors of finite numbers")
    return vectors


def _apply_signs(signs: Sequence[int], vector: Sequence[float]) -> tuple[float, float, float]:
    return triple(sign * number for sign, number in zip(signs, vector, strict=True))
