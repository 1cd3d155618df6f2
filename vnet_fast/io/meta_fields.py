"""The fields of a MetaImage header, split as ITK splits them, and the names that may be damaged.

ITK copies all that it knows of an image into the header, under any name and with any text, so that unknown fields
are usual. They are ignored, unless a field that matters is missing and one of them may be it.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vnet_fast.errors import InputError
from vnet_fast.io import integrity
from vnet_fast.io.header import CORRECT_HEADER, MAX_LINE, MAX_LINES
from vnet_fast.io.integrity import COPY_AGAIN

# synonyms, of which a header has one
ORIGINS = ("Offset", "Position", "Origin")
DIRECTIONS = ("TransformMatrix", "Rotation", "Orientation")
BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
SYNONYMS = (ORIGINS, DIRECTIONS, BYTE_ORDERS)
# the second counts if the first is missing
SPACINGS = ("ElementSpacing", "ElementSize")
# fields that determine how voxels are read or where they lie; a header may have any of a group
GROUPS = (
    *SYNONYMS, SPACINGS, ("ElementSpacing",), ("NDims",), ("DimSize",), ("ElementType",), ("ElementDataFile",),
    ("BinaryData",), ("CompressedData",), ("CompressedDataSize",), ("HeaderSize",), ("ElementNumberOfChannels",),
    ("DistanceUnits",), ("ElementToIntensityFunctionSlope",), ("ElementToIntensityFunctionOffset",),
)  # fmt: skip
CRITICAL = {name for group in GROUPS for name in group}
KNOWN = {*CRITICAL, "ObjectType", "ObjectSubType", "ObjectTypeName", "Comment", "Name", "ID", "ParentID", "Color",
         "CenterOfRotation", "AnatomicalOrientation", "CompressionLevel", "Modality", "SequenceID", "ElementMin",
         "ElementMax", "TransformType", "AcquisitionDate"}  # fmt: skip
# similarity, from 0 to 1, above which a name is close to another
SIMILAR = 0.8
# bytes of a name and of a value beyond which ITK fails
MAX_NAME, MAX_VALUE = 499, 32_767

NAME_END = re.compile(rb"[=:\r\n]")
SEPARATOR = re.compile(rb"[=:][=: \t]*")


def read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Reads the fields of a header.

    Returns:
        dict from the name of a field to its text; and the number of bytes of the header.

    Raises:
        InputError: if there is no end of the header, or a field that matters is given twice.
    """
    integrity.check_regular(path)
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        for name, value, hidden in _split(file):
            if hidden in CRITICAL:
                cause = f"damaged header: {hidden} follows a line without `=`, so that it is not seen as a field"
                raise InputError(path, cause, CORRECT_HEADER)
            if len(name) > MAX_NAME or len(value) > MAX_VALUE:
                raise InputError(path, "its header has a line that is too long for ITK", CORRECT_HEADER)
            # a zero byte ends a text of ITK's
            name_text = name.split(b"\0")[0].decode("latin-1")
            value_text = value.strip().decode("utf-8", "surrogateescape")
            _check_not_repeated(path, name_text, value_text, fields)
            fields[name_text] = value_text
            if name_text == "ElementDataFile":
                return fields, file.tell()
    similar = difflib.get_close_matches("elementdatafile", [name.lower() for name in fields], 1, SIMILAR)
    suggestion = f"; {similar[0]!r} may be meant as it" if similar else ""
    raise InputError(path, f"not a MetaImage header: it has no ElementDataFile{suggestion}", COPY_AGAIN)


def _split(file: BinaryIO) -> Iterator[tuple[bytes, bytes, str]]:
    """Yields the name and the value of each field, and the name that is hidden by a line before it.

    A name ends at `=`, `:` or the end of its line. The value follows the next `=` or `:`, even if that is on a later
    line: a line with neither, as in a text of several lines, takes the place of the name on the next line.

    Source:
        `MET_Read` and `MET_SkipToVal` of the MetaIO library, which ITK uses.
    """
    name = None
    for _ in range(MAX_LINES):
        line = file.readline(MAX_LINE)
        if not line or (len(line) == MAX_LINE and not line.endswith(b"\n")):
            return
        if name is None:
            line = line.lstrip()
            if not line:
                continue
            end = NAME_END.search(line)
            place = end.start() if end else len(line)
            name, line = line[:place].rstrip(b" \t"), line[place:]
        separator = SEPARATOR.search(line)
        if separator:
            hidden = line[: separator.start()].strip().decode("latin-1")
            yield name, line[separator.end() :].rstrip(b"\n"), hidden
            name = None


def _check_not_repeated(path: Path, name: str, value: str, fields: dict[str, str]) -> None:
    """Raises an InputError if a field that matters is given twice; some programs give it under two names alike."""
    synonyms = next((group for group in SYNONYMS if name in group), (name,))
    earlier = next((synonym for synonym in synonyms if synonym in fields), name)
    if name in CRITICAL and name in fields:
        raise InputError(path, f"damaged header: {name} is given twice", "Keep one of the two")
    if earlier != name and fields[earlier] != value:
        cause = f"damaged header: {earlier} and {name} are both given"
        raise InputError(path, cause, "Keep one of the two")


def check_unknown(path: Path, fields: dict[str, str]) -> None:
    """Raises an InputError if an unknown field may be the damaged one of a field that matters and is missing."""
    unknown = [name for name in fields if name not in KNOWN]
    missing = {name.lower(): name for group in GROUPS if not any(n in fields for n in group) for name in group}
    for name in unknown:
        similar = difflib.get_close_matches(name.lower(), missing, 1, SIMILAR)
        if similar:
            cause = f"damaged header: {name!r} is not a known field; {missing[similar[0]]} may be meant"
            raise InputError(path, cause, CORRECT_HEADER)
    for group in SYNONYMS:
        # with the default of one of these the volume would be misread silently, so that any unknown name is suspect
        if unknown and not any(name in fields for name in group):
            cause = f"damaged header: {group[0]} is missing, and {unknown[0]!r} is not a known field"
            raise InputError(path, cause, CORRECT_HEADER)
