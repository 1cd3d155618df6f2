"""The files of a volume: which formats are read, which files belong together, and whether they are
whole and sound. ITK reads some damaged files without a word, so they are checked before it sees them.
"""

import os
from pathlib import Path

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import metaimage, nifti, nrrd
from vnet_fast.io.integrity import COPY_AGAIN, check_regular

FORMATS = {
    ".nii.gz": nifti,
    ".nii": nifti,
    ".mhd": metaimage,
    ".mha": metaimage,
    ".nrrd": nrrd,
    ".nhdr": nrrd,
}
SUFFIXES = tuple(FORMATS)
# their data may be in another file
HEADER_SUFFIXES = (".mhd", ".mha", ".nrrd", ".nhdr")
DICOM_MAGIC, DICOM_MAGIC_OFFSET = b"DICM", 128
# files that are DICOM by their name, whatever they hold
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
CONVERT = f"Convert it to one of {' '.join(SUFFIXES)}"


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
        InputError: if the folder can't be listed, or holds DICOM slices itself.
        InputErrors: of all names that stand there in two formats.
    """
    found, errors = {}, []
    for path in sorted(listed(folder)):
        if path.name.startswith("."):
            continue
        if suffix_of(path) is None and is_dicom_file(path):
            raise InputError(folder, f"holds DICOM slices itself ({path.name})", "Give each series a folder of its own")
        if not (suffix_of(path) or is_dicom_folder(path)):
            continue
        name = stem_of(path)
        if name in found:
            errors.append(InputError(path, f"the same case as {found[name].name}", "Keep one of the two"))
        found.setdefault(name, path)
    if errors:
        raise InputErrors(errors)
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
        return slices_of(path)
    if suffix_of(path) not in HEADER_SUFFIXES:
        return [path]
    data = FORMATS[suffix_of(path)].data_file(path)
    return [path] if data == path else [path, data]


def slices_of(folder):
    """The DICOM files of a folder, in order of name.

    Raises:
        InputError: if there are volumes of other formats beside them, or a file only named as DICOM.
    """
    entries = [entry for entry in sorted(listed(folder)) if not entry.name.startswith(".")]
    slices = [entry for entry in entries if is_dicom_file(entry)]
    for entry in entries:
        if entry not in slices and _may_be_a_slice(entry):
            check_regular(entry)
            raise InputError(entry, "truncated or damaged: it is not a DICOM file", COPY_AGAIN)
    others = [entry for entry in entries if suffix_of(entry)]
    if slices and others:
        cause = f"DICOM slices and {others[0].name} in one folder"
        raise InputError(folder, cause, "Give the series a folder of its own, or name the file")
    return slices


def _may_be_a_slice(path):
    """Whether a file that is none by its content is one by its name, or can't be known to be none."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    return os.path.isfile(path) and (not os.access(path, os.R_OK) or os.path.getsize(path) == 0)


def check(path):
    """Makes sure that the files of the volume at `path` are there, whole and sound.

    Returns:
        header.Header.

    Raises:
        InputError: if not, with the cause.
    """
    path = Path(path)
    check_regular(path)
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(path, "not a format that is read", CONVERT)
    return FORMATS[suffix].check(path)
