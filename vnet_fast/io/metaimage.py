"""MetaImage's headers, `.mhd` with a data file beside it and `.mha` with the data in it."""

import difflib

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import CONVERT, Placement, beside, integers, make_header, numbers
from vnet_fast.io.integrity import COPY_AGAIN

MAX_LINE, MAX_LINES = 1 << 16, 10_000
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
ORIGINS = ("Offset", "Position", "Origin")
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
# what changes how voxels are read or where they lie; a name that is nearly one of these is a mistake
READ = (
    "NDims", "BinaryData", *BYTE_ORDERS, "CompressedData", "CompressedDataSize", *ORIGINS, *DIRECTIONS,
    "DistanceUnits", "ElementSpacing", "ElementSize", "DimSize", "HeaderSize", "ElementNumberOfChannels",
    "ElementType", "ElementDataFile", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset",
)  # fmt: skip
KNOWN = {*READ, "ObjectType", "ObjectSubType", "ObjectTypeName", "Comment", "Name", "ID", "ParentID", "Color",
         "CenterOfRotation", "AnatomicalOrientation", "CompressionLevel", "Modality", "SequenceID", "ElementMin",
         "ElementMax", "TransformType", "AcquisitionDate"}  # fmt: skip
NEARLY = 0.8


def data_file(path):
    """The file that holds the voxels: `path` itself, or the one that its header names."""
    return _data_file(path, _fields(path)[0])


def check(path):
    """Makes sure that a file is sound and whole.

    Returns:
        Header.

    Raises:
        InputError: if not, with the cause.
    """
    fields, end = _fields(path)
    try:
        _check_complete(path, fields)
        _check_encoding(path, fields)
        size = integers(fields["DimSize"], *integers(fields["NDims"], 1))
        channels = integers(fields.get("ElementNumberOfChannels", "1"), 1)[0]
        skip = integers(fields.get("HeaderSize", "0"), 1)[0]
        voxel_bytes = ELEMENT_BYTES.get(fields["ElementType"])
        if voxel_bytes is None:
            raise InputError(path, f"its ElementType {fields['ElementType']} is not read", CONVERT)
        header = make_header(path, size, channels, voxel_bytes, lambda: [_placement(fields, len(size))])
        packed = numbers(fields["CompressedDataSize"], 1)[0] if "CompressedDataSize" in fields else None
    except KeyError as error:
        raise InputError(path, f"damaged header: it gives no {error.args[0]}", COPY_AGAIN) from None
    except ValueError as error:
        raise InputError(path, f"damaged header ({error})", COPY_AGAIN) from None
    _check_data(path, fields, header.data_bytes, end, skip, packed)
    return header


def _check_data(path, fields, expected, end, skip, packed):
    data = _data_file(path, fields)
    integrity.check_regular(data)
    compressed = _compressed(fields)
    if skip < -1 or (skip != 0 and (compressed or data == path)):
        raise InputError(path, f"its HeaderSize of {skip} is not read here", CONVERT)
    if skip == -1:
        skip = max(data.stat().st_size - expected, 0)
    skip = end if data == path else skip
    if not compressed:
        return integrity.check_plain(data, skip, expected)
    integrity.check_deflated(data, skip, expected, integrity.ZLIB)
    length = data.stat().st_size - skip
    if packed is not None and packed != length:
        cause = f"has {length} compressed bytes where its header says {packed:.15g}"
        raise InputError(data, cause, COPY_AGAIN)


def _fields(path):
    """The fields of a header, and where the data begins if it is in the same file."""
    integrity.check_regular(path)
    fields = {}
    with open(path, "rb") as file:
        for _ in range(MAX_LINES):
            key, equals, value = file.readline(MAX_LINE).partition(b"=")
            key = key.strip().decode("latin-1")
            if not equals or not key.isprintable():
                break
            _check_name(path, key, fields)
            fields[key] = value.strip().decode("utf-8", "surrogateescape")
            if key == "ElementDataFile":
                return fields, file.tell()
    raise InputError(path, "not a MetaImage header: it names no ElementDataFile", COPY_AGAIN)


def _check_name(path, key, fields):
    alike = next((group for group in (ORIGINS, DIRECTIONS, BYTE_ORDERS) if key in group), (key,))
    twice = next((name for name in alike if name in fields), None)
    if twice and key in KNOWN:
        raise InputError(path, f"damaged header: {key} after {twice}", "Keep one of the two")
    by_lower = {name.lower(): name for name in READ}
    near = [] if key in KNOWN else difflib.get_close_matches(key.lower(), by_lower, 1, NEARLY)
    if near or ":" in key:
        meant = f", {by_lower[near[0]]} may be meant" if near else ""
        raise InputError(path, f"damaged header: {key!r} is no field{meant}", "Mend the header, or export it again")


def _check_complete(path, fields):
    """What a header leaves out has a default, but not in one that may have lost it by damage."""
    strange = next((key for key in fields if key not in KNOWN), None)
    for group in (ORIGINS, DIRECTIONS, BYTE_ORDERS, ("BinaryData",), ("CompressedData",)):
        if strange is not None and not any(name in fields for name in group):
            cause = f"damaged header: it gives no {group[0]}, and {strange!r} is no field that is known"
            raise InputError(path, cause, "Mend the header, or export it again")
    if fields["ElementDataFile"].upper() == "LOCAL" and "CompressedDataSize" not in fields and _compressed(fields):
        # ITK would unpack from the wrong place
        raise KeyError("CompressedDataSize")


def _compressed(fields):
    return fields.get("CompressedData", "False").lower() == "true"


def _check_encoding(path, fields):
    for name in ("BinaryData", "CompressedData", *BYTE_ORDERS):
        if fields.get(name, "True").lower() not in ("true", "false"):
            raise ValueError(f"{name} is {fields[name]!r}, not True or False")
    if fields.get("BinaryData", "True").lower() == "false":
        raise InputError(path, "its voxels are written as text", CONVERT)
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise InputError(path, f"its DistanceUnits are {fields['DistanceUnits']}, not mm", CONVERT)
    for name, neutral in (("Slope", 1), ("Offset", 0)):
        name = f"ElementToIntensityFunction{name}"
        if numbers(fields.get(name, str(neutral)), 1) != [neutral]:
            # ITK would leave them as they are
            raise InputError(path, f"its voxels are to be scaled ({name} = {fields[name]})", CONVERT)


def _placement(fields, axes):
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize")
    if spacing is None:
        raise KeyError("ElementSpacing")
    origin = next((fields[name] for name in ORIGINS if name in fields), "0 " * axes)
    direction = next((fields[name] for name in DIRECTIONS if name in fields), words_of_identity(axes))
    # written axis by axis: the columns of the matrix
    matrix = np.array(numbers(direction, axes * axes)).reshape(axes, axes).T[:3, :3]
    return Placement(
        tuple(numbers(spacing, axes)[:3]), tuple(numbers(origin, axes)[:3]), tuple(matrix.ravel().tolist())
    )


def words_of_identity(axes):
    """An identity matrix as a header writes it."""
    return " ".join(str(int(value)) for value in np.eye(axes).ravel())


def _data_file(path, fields):
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(path, "its data is spread over several files", CONVERT)
    return beside(path, name)
