"""The head of a DICOM file: which object it holds, and how it is encoded. It is read without any library.

Source:
    DICOM PS3.10, section 7.1: 128 bytes, `DICM`, and the elements of group 2 in little endian with explicit types.
"""

import os
import struct
from pathlib import Path

DICOM_MAGIC, DICOM_MAGIC_OFFSET = b"DICM", 128
META_GROUP = 2
STORAGE_CLASS, TRANSFER_SYNTAX = 0x0002, 0x0010
# Segmentation Storage and Label Map Segmentation Storage
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
# what has no pixels and lies beside slices, by its storage class or the first part of it (PS3.4, table B.5-1)
CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
WITHOUT_PIXELS = {
    CONTOURS: "an RT Structure Set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.481.5": "an RT Plan (RTPLAN)",
    "1.2.840.10008.5.1.4.1.1.481.8": "an RT Plan (RTPLAN)",
    "1.2.840.10008.5.1.4.1.1.88.59": "a Key Object Selection (KO)",
    "1.2.840.10008.5.1.4.1.1.88": "a Structured Report (SR)",
    "1.2.840.10008.5.1.4.1.1.11": "a Presentation State (PR)",
    "1.2.840.10008.5.1.4.1.1.66.1": "a Spatial Registration (REG)",
    "1.2.840.10008.5.1.4.1.1.66.3": "a Spatial Registration (REG)",
    "1.2.840.10008.5.1.4.1.1.66.5": "a Surface Segmentation",
    "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document (DOC)",
}
# types with two reserved bytes and a length of four bytes
LONG_TYPES = (b"OB", b"OW", b"UN", b"SQ", b"UT")
# of the head; identifiers have at most 64 bytes
MAX_HEAD = 1 << 16


def is_dicom_file(path: Path) -> bool:
    """Returns whether a file can be read and has DICOM's magic number; False for a `DICOMDIR`, which has no voxels."""
    if not os.path.isfile(path) or path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            file.seek(DICOM_MAGIC_OFFSET)
            return file.read(len(DICOM_MAGIC)) == DICOM_MAGIC
    except OSError:
        return False


def is_segmentation(path: str | Path) -> bool:
    """Returns whether a file can be read and says that it is a DICOM Segmentation."""
    path = Path(path)
    return is_dicom_file(path) and read_meta(path)[0].get(STORAGE_CLASS) in (SEGMENTATION, LABEL_MAP)


def kind_without_pixels(path: Path) -> str | None:
    """What a DICOM file says that it is if such objects have no pixels, by a key of WITHOUT_PIXELS; otherwise None."""
    storage_class = read_meta(path)[0].get(STORAGE_CLASS, "")
    return next((kind for kind in WITHOUT_PIXELS if f"{storage_class}.".startswith(f"{kind}.")), None)


def segmentation_in(folder: Path) -> Path | None:
    """Returns the DICOM Segmentation in a folder that holds nothing else, as archives export it; otherwise None."""
    try:
        files = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return None
    return files[0] if len(files) == 1 and is_segmentation(files[0]) else None


def read_meta(path: Path) -> tuple[dict[int, str], int]:
    """Reads the head of a file with DICOM's magic number, as far as it is sound.

    Returns:
        dict from the number of an element of group 2 to its text; and the number of bytes of the head.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_HEAD)
    except OSError:
        return {}, 0
    at, elements = DICOM_MAGIC_OFFSET + len(DICOM_MAGIC), {}
    while at + 8 <= len(content):
        group, element = struct.unpack_from("<2H", content, at)
        is_long = content[at + 4 : at + 6] in LONG_TYPES
        if group != META_GROUP or (is_long and at + 12 > len(content)):
            break
        (length,) = struct.unpack_from("<I" if is_long else "<H", content, at + (8 if is_long else 6))
        start = at + (12 if is_long else 8)
        elements[element] = content[start : start + length].rstrip(b"\0 ").decode("latin-1")
        at = start + length
    return elements, at
