"""The formats that are read, and the files of a volume.

ITK reads some damaged files without an error. Therefore `verify_volume` checks a volume's files before ITK reads
them. A new format needs a module with a `read_header`, and an entry in FORMATS.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import metaimage, nifti, nrrd
from vnet_fast.io.dicom_meta import is_dicom_file, is_segmentation, segmentation_in
from vnet_fast.io.header import Header
from vnet_fast.io.integrity import COPY_AGAIN, check_regular


@dataclass(frozen=True)
class Format:
    """A format of volumes.

    Args:
        suffixes: of its files, in lower case.
        image_io: name of ITK's reader and writer.
        read_header: verifies and returns the header of the volume at a path, with a function that verifies its voxels.
        data_file: returns the file with the voxels of the volume at a path; None if the header and the voxels are
            always in one file.
    """

    suffixes: tuple[str, ...]
    image_io: str
    read_header: Callable[[Path], tuple[Header, Callable[[], None]]]
    data_file: Callable[[Path], Path] | None = None


FORMATS = (
    Format((".nii.gz", ".nii"), nifti.IMAGE_IO, nifti.read_header),
    Format((".mhd", ".mha"), "MetaImageIO", metaimage.read_header, metaimage.data_file),
    Format((".nrrd", ".nhdr"), "NrrdImageIO", nrrd.read_header, nrrd.data_file),
)
_BY_SUFFIX = {suffix: entry for entry in FORMATS for suffix in entry.suffixes}
SUFFIXES = tuple(_BY_SUFFIX)
# a file with one of these suffixes is meant as DICOM, whatever it holds
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# where series are looked for that lie deeper than they are read, such as PATIENT/STUDY/SERIES
SEARCHED_LEVELS, SEARCHED_ENTRIES = 3, 5
OWN_FOLDER = "Give each series a folder of its own"
CONVERT = f"Convert it to one of {' '.join(SUFFIXES)}"


def suffix_of(path: str | Path) -> str | None:
    """Returns the suffix of a volume's file in lower case, or None if its format is not supported."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), None)


def stem_of(path: str | Path) -> str:
    """Returns the name of a volume's file without its suffix, or the name of a folder."""
    name = Path(path).name
    suffix = suffix_of(name) or next((end for end in DICOM_SUFFIXES if name.lower().endswith(end)), "")
    return name[: len(name) - len(suffix)] or name


def format_of(path: str | Path) -> Format:
    """Returns the format of a volume's file.

    Raises:
        InputError: if the format is not supported.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise InputError(path, "not a supported format", CONVERT)
    return _BY_SUFFIX[suffix]


def is_meant_as_dicom(path: Path) -> bool:
    """Returns whether a file is DICOM by its suffix, or by its magic number if its suffix says nothing."""
    return path.suffix.lower() in DICOM_SUFFIXES or (suffix_of(path) is None and is_dicom_file(path))


def is_dicom_output(path: str | Path) -> bool:
    """Returns whether the path of an output is meant as a DICOM file, and is no folder."""
    return Path(path).suffix.lower() in DICOM_SUFFIXES and not os.path.isdir(path)


def is_dicom_folder(path: Path) -> bool:
    """Returns whether a folder can be listed and holds a DICOM file that is no Segmentation."""
    try:
        entries = sorted(path.iterdir()) if os.path.isdir(path) else []
        return any(is_dicom_file(entry) and not is_segmentation(entry) for entry in entries)
    except OSError:
        return False


def folder_of_series(folder: Path, levels: int = SEARCHED_LEVELS) -> Path | None:
    """The folder whose entries are folders of DICOM slices, this one or one below; None if the first entries of
    each, so many levels down, lead to none."""
    inner = [entry for entry in _first_entries(folder) if os.path.isdir(entry)]
    if any(is_dicom_file(entry) for subfolder in inner for entry in _first_entries(subfolder)):
        return folder
    below = (folder_of_series(subfolder, levels - 1) for subfolder in inner if levels > 1)
    return next((found for found in below if found is not None), None)


def _first_entries(folder: Path) -> list[Path]:
    """A few entries of a folder, sorted by name and without hidden ones; none if it can't be listed."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))[:SEARCHED_ENTRIES]
    except OSError:
        return []


def volumes_in(folder: str | Path) -> dict[str, Path]:
    """Finds the volumes of a folder: files of the supported formats, and folders of DICOM slices.

    DICOM Segmentations, which hold masks, are found too: files, and the only files of folders.

    Returns:
        dict from the name without suffix to the path, sorted by path, without hidden files.

    Raises:
        InputError: if the folder can't be listed, or holds DICOM slices itself.
        InputErrors: for all names that occur in two formats.
    """
    volumes: dict[str, Path] = {}
    errors = []
    for path in sorted(list_folder(folder)):
        if path.name.startswith("."):
            continue
        if suffix_of(path) is None and is_dicom_file(path) and not is_segmentation(path):
            raise InputError(folder, f"holds DICOM slices itself ({path.name})", OWN_FOLDER)
        inner = segmentation_in(path) if os.path.isdir(path) else None
        if not (suffix_of(path) or inner or is_segmentation(path) or is_dicom_folder(path)):
            continue
        name = stem_of(path)
        if name in volumes:
            errors.append(InputError(path, f"the same case as {volumes[name].name}", "Keep one of the two"))
        volumes.setdefault(name, inner or path)
    if errors:
        raise InputErrors(errors)
    return volumes


def list_folder(folder: str | Path) -> list[Path]:
    """Returns the entries of a folder; raises an InputError if it can't be listed."""
    folder = Path(folder)
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        raise InputError(folder, "no such folder", "Check the path") from None
    except NotADirectoryError:
        raise InputError(folder, "not a folder", "Name the folder that holds the cases") from None
    except OSError as error:
        raise InputError(folder, f"can't be listed ({error.strerror})", "Check its permissions") from None


def files_of(path: str | Path) -> list[Path]:
    """Returns all files of the volume at `path`, header first.

    Raises:
        InputError: if the header can't be read or names no usable data file.
    """
    path = Path(path)
    if path.is_dir():
        return slices_of(path)
    suffix = suffix_of(path)
    find_data_file = _BY_SUFFIX[suffix].data_file if suffix else None
    data = find_data_file(path) if find_data_file else path
    return [path] if data == path else [path, data]


def slices_of(folder: str | Path) -> list[Path]:
    """Returns the DICOM files of a folder, sorted by name.

    Raises:
        InputError: if the folder also holds volumes of other formats, or files that should be DICOM but are not.
    """
    entries = [entry for entry in sorted(list_folder(folder)) if not entry.name.startswith(".")]
    slices = [entry for entry in entries if is_dicom_file(entry)]
    for entry in entries:
        if entry not in slices and _may_be_slice(entry):
            check_regular(entry)
            raise InputError(entry, "truncated or damaged: it is not a DICOM file", COPY_AGAIN)
    others = [entry for entry in entries if suffix_of(entry)]
    if slices and others:
        cause = f"DICOM slices and {others[0].name} in one folder"
        raise InputError(folder, cause, "Give the series a folder of its own, or name the file")
    return slices


def _may_be_slice(path: Path) -> bool:
    """Returns whether a file without DICOM's magic number is named as DICOM, is empty or can't be read."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    return os.path.isfile(path) and (not os.access(path, os.R_OK) or os.path.getsize(path) == 0)


def verify_volume(path: str | Path) -> Header:
    """Verifies that the files of the volume at `path` exist, are complete and undamaged.

    Returns:
        the header of the volume.

    Raises:
        InputError: if they are not, with the cause.
    """
    header, check_voxels = _read_header(Path(path))
    check_voxels()
    return header


def read_header(path: str | Path) -> Header:
    """Returns the header of the volume at `path`, without a look at its voxels.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    return _read_header(Path(path))[0]


def _read_header(path: Path) -> tuple[Header, Callable[[], None]]:
    check_regular(path)
    return format_of(path).read_header(path)
