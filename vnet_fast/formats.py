"""The files of a volume: which formats are read, which files belong together, and whether they are
whole. ITK reads some damaged files without a word, so they are checked before it sees them.
"""

import gzip
import math
import os
import stat
import struct
import zlib
from pathlib import Path

from vnet_fast.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd")
DICOM_MAGIC, DICOM_MAGIC_OFFSET = b"DICM", 128
COPY_AGAIN = "Copy or export it again"
CONVERT = f"Convert it to one of {' '.join(SUFFIXES)}"
CHUNK = 1 << 20
# what may follow the voxels in a sound NIfTI file: padding of some writers
TRAILING_BYTES = 1 << 16

META_ELEMENT_BYTES = {
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


def suffix_of(path):
    """The suffix of a volume's file in lower case, or None if the format is not read."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def stem_of(path):
    """The name of a volume's file without its suffix; of a folder, its name."""
    name = Path(path).name
    return name[: -len(suffix_of(name) or "")] if suffix_of(name) else name


def is_dicom_file(path):
    """Whether a file can be read and has the DICOM magic number; an index of files does not count."""
    if not os.path.isfile(path) or path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            file.seek(DICOM_MAGIC_OFFSET)
            return file.read(len(DICOM_MAGIC)) == DICOM_MAGIC
    except OSError:
        return False


def is_dicom_folder(path):
    """Whether a folder can be listed and holds a DICOM file."""
    try:
        return os.path.isdir(path) and any(is_dicom_file(entry) for entry in sorted(path.iterdir()))
    except OSError:
        return False


def volumes_in(folder):
    """The volumes of a folder: files in a known format and folders of DICOM slices.

    Returns:
        dict from the name without suffix to the path, in order of name; hidden files left out.

    Raises:
        InputError: if the folder can't be listed, or a name stands there in two formats.
    """
    found = {}
    for path in sorted(listed(folder)):
        if path.name.startswith(".") or not (suffix_of(path) or is_dicom_folder(path)):
            continue
        name = stem_of(path)
        if name in found:
            raise InputError(path, f"the same case as {found[name].name}", "Keep one of the two")
        found[name] = path
    return found


def listed(folder):
    """The entries of a folder; an `InputError` if it can't be listed."""
    folder = Path(folder)
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        raise InputError(folder, "no such folder", "Check the path") from None
    except NotADirectoryError:
        raise InputError(folder, "not a folder", "Name the folder that holds the cases") from None
    except OSError as error:
        raise InputError(folder, f"can't be listed ({error.strerror})", "Check its permissions") from None


def files_of(path):
    """Every file that holds part of the volume at `path`, header first.

    Raises:
        InputError: if the header can't be read or names no usable data file.
    """
    path = Path(path)
    if path.is_dir():
        return sorted(entry for entry in listed(path) if is_dicom_file(entry))
    if suffix_of(path) == ".mhd":
        return [path, _meta_data_file(path, _meta_header(path)[0])]
    return [path]


def check(path):
    """Makes sure that the files of the volume at `path` are there and whole.

    Raises:
        InputError: if not, with the cause.
    """
    path = Path(path)
    check_regular(path)
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(path, "not a format that is read", CONVERT)
    if suffix in (".nii", ".nii.gz"):
        _check_nifti(path)
    elif suffix in (".mhd", ".mha"):
        _check_meta(path)
    else:
        _check_nrrd(path)


def check_regular(path):
    """Makes sure that `path` is a regular file that can be read and is not empty."""
    try:
        status = os.stat(path)
        with open(os.devnull if not stat.S_ISREG(status.st_mode) else path, "rb"):
            pass
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "not a regular file", "Name a volume's file")
    if status.st_size == 0:
        raise InputError(path, "an empty file", COPY_AGAIN)


def _check_nifti(path):
    compressed = suffix_of(path) == ".nii.gz"
    try:
        with gzip.open(path) if compressed else open(path, "rb") as file:
            header = file.read(540)
            expected = _nifti_bytes(path, header)
            total = len(header)
            while total <= expected + TRAILING_BYTES and (chunk := file.read(CHUNK)):
                total += len(chunk)
    except EOFError:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"damaged gzip data ({error})", COPY_AGAIN) from None
    _check_length(path, total, expected, expected + TRAILING_BYTES)


def _nifti_bytes(path, header):
    """How long the file must be by its NIfTI-1 or NIfTI-2 header, uncompressed."""
    for order in "<>":
        if len(header) >= 348 and struct.unpack_from(order + "i", header)[0] == 348:
            dimensions = struct.unpack_from(order + "8h", header, 40)
            bits = struct.unpack_from(order + "h", header, 72)[0]
            offset = struct.unpack_from(order + "f", header, 108)[0]
            break
        if len(header) >= 540 and struct.unpack_from(order + "i", header)[0] == 540:
            dimensions = struct.unpack_from(order + "8q", header, 16)
            bits = struct.unpack_from(order + "h", header, 14)[0]
            offset = struct.unpack_from(order + "q", header, 168)[0]
            break
    else:
        raise InputError(path, "not a NIfTI file", COPY_AGAIN)
    count, lengths = dimensions[0], dimensions[1:]
    if not 1 <= count <= 7 or min(lengths[:count]) < 1 or bits < 1 or not 0 <= offset < 1 << 40:
        raise InputError(path, "damaged NIfTI header", COPY_AGAIN)
    return int(offset) + math.prod(lengths[:count]) * bits // 8


def _check_meta(path):
    header, data_offset = _meta_header(path)
    try:
        lengths = [int(word) for word in header["DimSize"].split()]
        channels = int(header.get("ElementNumberOfChannels", 1))
        expected = math.prod(lengths) * channels * META_ELEMENT_BYTES[header["ElementType"]]
        header_size = max(int(header.get("HeaderSize", 0)), 0)
    except (KeyError, ValueError) as error:
        raise InputError(path, f"damaged header ({type(error).__name__}: {error})", COPY_AGAIN) from None
    if min(lengths, default=0) < 1 or channels < 1:
        raise InputError(path, f"its header says a size of {header['DimSize']}", COPY_AGAIN)
    data = _meta_data_file(path, header)
    check_regular(data)
    skip = data_offset if data == path else header_size
    if header.get("CompressedData", "False").lower() == "true":
        total = _inflated_bytes(data, skip)
    else:
        total = data.stat().st_size - skip
    _check_length(data, total, expected, expected)


def _meta_header(path):
    """The keys of a MetaImage header, and where the data begins if they are in the same file."""
    check_regular(path)
    header = {}
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(4096), b""):
            key, equals, value = line.partition(b"=")
            if not equals:
                break
            header[key.strip().decode("latin-1")] = value.strip().decode("utf-8", "surrogateescape")
            if key.strip() == b"ElementDataFile":
                return header, file.tell()
    raise InputError(path, "not a MetaImage header: it names no ElementDataFile", COPY_AGAIN)


def _meta_data_file(path, header):
    name = header["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(path, "its data is spread over several files", CONVERT)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(path, f"its data file lies outside its folder ({name})", "Put the two side by side")
    data = path.parent / name
    if data == path:
        raise InputError(path, "names itself as its data file", COPY_AGAIN)
    if not data.exists():
        raise InputError(path, f"its data file {name} is missing", "Put the two side by side")
    return data


def _inflated_bytes(path, skip):
    inflate, total = zlib.decompressobj(), 0
    try:
        with open(path, "rb") as file:
            file.seek(skip)
            while not inflate.eof and (chunk := file.read(CHUNK)):
                total += len(inflate.decompress(chunk))
    except zlib.error as error:
        raise InputError(path, f"damaged compressed data ({error})", COPY_AGAIN) from None
    if not inflate.eof:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN)
    return total


def _check_nrrd(path):
    with open(path, "rb") as file:
        if not file.read(4) == b"NRRD":
            raise InputError(path, "not an NRRD file", COPY_AGAIN)
        for line in iter(lambda: file.readline(4096), b""):
            if not line.strip():
                return
            if line.lower().startswith((b"data file:", b"datafile:")):
                raise InputError(path, "its data is in another file", CONVERT)
    raise InputError(path, "truncated: its header has no end", COPY_AGAIN)


def _check_length(path, total, expected, most):
    if total < expected:
        raise InputError(path, f"truncated: {total} bytes where its header says {expected}", COPY_AGAIN)
    if total > most:
        raise InputError(path, f"longer than the {expected} bytes that its header says", COPY_AGAIN)
