"""NRRD's headers: `.nrrd` with the data in it, `.nhdr` with a data file beside it."""

import math
import re

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import CONVERT, Placement, beside, columns, integers, make_header, numbers
from vnet_fast.io.integrity import COPY_AGAIN

MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
MAX_LINE, MAX_LINES = 1 << 16, 10_000
# the spaces that are read, and the signs that turn their axes to left, posterior, superior
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
SPATIAL_KINDS = {"domain", "space", "none", "???"}
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


def data_file(path):
    """The file that holds the voxels: `path` itself, or the one that its header names."""
    fields = _fields(path)[0]
    return beside(path, fields["data file"]) if "data file" in fields else path


def check(path):
    """Makes sure that a file is sound and whole.

    Returns:
        Header.

    Raises:
        InputError: if not, with the cause.
    """
    fields, end = _fields(path)
    if "data file" in fields and (fields["data file"].upper().startswith("LIST") or "%" in fields["data file"]):
        raise InputError(path, "its data is spread over several files", CONVERT)
    try:
        size = integers(fields["sizes"], *integers(fields["dimension"], 1))
        voxel_bytes = ELEMENT_BYTES.get(fields["type"].lower())
        if voxel_bytes is None:
            raise InputError(path, f"its type {fields['type']} is not read", CONVERT)
        if voxel_bytes > 1 and fields["endian"].lower() not in ("little", "big"):
            raise ValueError(f"endian is {fields['endian']!r}, not little or big")
        _check_axes(path, size, fields)
        header = make_header(path, size, 1, voxel_bytes, lambda: [_placement(path, fields)])
        skips = [fields.get(name, "0") for name in ("line skip", "byte skip")]
        encoding = fields["encoding"].lower()
    except KeyError as error:
        raise InputError(path, f"damaged header: it gives no {error.args[0]}", COPY_AGAIN) from None
    except ValueError as error:
        raise InputError(path, f"damaged header ({error})", COPY_AGAIN) from None
    if skips != ["0", "0"]:
        raise InputError(path, "its header says to skip part of the data", CONVERT)
    data = data_file(path)
    integrity.check_regular(data)
    skip = end if data == path else 0
    if encoding == "raw":
        integrity.check_plain(data, skip, header.data_bytes)
    elif encoding in ("gzip", "gz"):
        integrity.check_deflated(data, skip, header.data_bytes, integrity.GZIP)
    else:
        raise InputError(path, f"its encoding {fields['encoding']} is not read", CONVERT)
    return header


def _fields(path):
    """The fields of a header, and where the data begins if it is in the same file."""
    integrity.check_regular(path)
    fields = {}
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
            if not text.startswith("#") and ":=" not in text:
                _add_field(path, fields, text)
        if not line and "data file" in fields:
            # a detached header may end without an empty line
            return fields, file.tell()
    raise InputError(path, "truncated: its header has no end", COPY_AGAIN)


def _add_field(path, fields, text):
    name, colon, value = text.partition(":")
    name = SYNONYMS.get(name.lower(), name.lower())
    if not colon or name not in KNOWN:
        cause = f"damaged header: {text[:40].encode('ascii', 'backslashreplace').decode()!r} is no field"
        raise InputError(path, cause, "Mend the header, or export it again")
    if name in fields:
        raise InputError(path, f"damaged header: {name} stands there twice", "Keep one of the two")
    fields[name] = value.strip()


def _check_axes(path, size, fields):
    """Makes sure that every axis is one of space: others are the numbers of a voxel, or time."""
    kinds = fields.get("kinds", "").lower().split()
    if (kinds and not (len(kinds) == len(size) and SPATIAL_KINDS.issuperset(kinds))) or len(size) != 3:
        cause = f"not a volume of scalars but {len(size)}-D of kinds {' '.join(kinds) or 'not named'}"
        raise InputError(path, cause, "Name a 3-D volume")


def _placement(path, fields):
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in ("mm", "millimeter", "millimetre", "") for unit in units):
        raise InputError(path, f"its space units are {fields['space units']}, not mm", CONVERT)
    if "space directions" not in fields:
        spacing = numbers(fields["spacings"], 3) if "space" not in fields else _missing("space directions")
        return Placement(tuple(spacing), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    signs = SPACES.get(fields["space"].lower())
    if signs is None:
        raise InputError(path, f"its space {fields['space']} is not read", CONVERT)
    spacing, direction = columns([_signed(signs, vector) for vector in _vectors(fields["space directions"], 3)])
    origin = _signed(signs, _vectors(fields.get("space origin", "(0,0,0)"), 1)[0])
    return Placement(spacing, origin, direction)


def _missing(name):
    raise KeyError(name)


def _vectors(text, count):
    """The vectors of a text such as (1,0,0) (0,1,0); a ValueError if there is anything else."""
    found = re.findall(r"\(([^()]*)\)", text)
    if len(found) != count or re.sub(r"\([^()]*\)", "", text).strip():
        raise ValueError(f"{count} vectors are needed, got {text!r}")
    vectors = [numbers(part.replace(",", " "), 3) for part in found]
    if any(part.count(",") != 2 for part in found) or not all(math.isfinite(n) for v in vectors for n in v):
        raise ValueError(f"{text!r} are no vectors")
    return vectors


def _signed(signs, vector):
    return tuple(sign * number for sign, number in zip(signs, vector, strict=True))
