"""Finds the volumes of a folder, and names their masks."""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
# which MONAI reads with nibabel; it reads the others, and DICOM, with ITK
NIFTI = (".nii.gz", ".nii")
# where DICOM files have the letters DICM
PREAMBLE = 128
CHANNEL = re.compile(r"(.+)_(\d{4})")
# instead of the number of a channel
WHOLE = -1


def name_of(path: str | Path) -> str | None:
    """The name of a volume's file without its suffix; None if it is none."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def is_series(path: Path) -> bool:
    """Whether a path is a folder with DICOM slices."""
    return path.is_dir() and any(map(_is_dicom, path.iterdir()))


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"


def series_in(folder: Path) -> Sequence[str]:
    """The series that MONAI finds in a folder, of which it reads the first one."""
    itk: Any = importlib.import_module("itk")
    # as in MONAI's ITKReader
    found = itk.GDCMSeriesFileNames.New()
    found.SetUseSeriesDetails(True)
    found.AddSeriesRestriction("0008|0021")
    found.SetDirectory(str(folder))
    return tuple(found.GetSeriesUIDs())


def _check_alone(folder: Path) -> None:
    """Raises a ValueError if other volumes lie among DICOM slices, which would be left out."""
    others = [path.name for path in sorted(folder.iterdir()) if name_of(path) and not path.name.startswith(".")]
    if others:
        cause = f"DICOM slices and {others[0]} in one folder"
        raise ValueError(f"{folder}: {cause}. Give the series a folder of its own")


def _check_readable(path: Path) -> None:
    """Raises a ValueError unless MONAI reads a path, and a folder as one series."""
    if path.name.lower().endswith(NIFTI) and not path.is_dir():
        return
    if importlib.util.find_spec("itk") is None:
        raise ValueError(f"{path}: MONAI reads it with ITK, which is not installed. pip install itk")
    count = len(series_in(path)) if path.is_dir() else 1
    if count > 1:
        raise ValueError(f"{path}: MONAI finds {count} DICOM series. Give each series a folder of its own")


def find_images(folder: str, channels: int) -> list[dict[str, list[str]]]:
    """The files of the volumes in a folder, one, or one for each channel: CASE_0000, CASE_0001 and so on.

    A volume, or a channel, may also be a folder of DICOM slices, and so may the folder itself.

    Raises:
        ValueError: if there are none; a volume has other files than these; a folder has slices and other volumes, or
            slices of several series; or ITK is needed and missing.
    """
    # resolved, because `.` has no name
    whole = Path(folder).resolve()
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in [whole] if is_series(whole) else sorted(Path(folder).iterdir()):
        is_folder = is_series(path)
        name = path.name if is_folder else name_of(path)
        if name is None or path.name.startswith(".") or name.endswith("_segmentation"):
            continue
        if is_folder:
            _check_alone(path)
        _check_readable(path)
        case, number = _case_of(name, channels > 1)
        found.setdefault(case, []).append((number, path))
    if not found:
        raise ValueError(f"{folder}: no volumes")
    for case, files in found.items():
        # one file may have all channels
        if [number for number, _ in files] not in ([WHOLE], [0], list(range(channels))):
            has = f"has the file{'s' if len(files) > 1 else ''} {', '.join(path.name for _, path in files)}"
            needs = f"{case}_0000 to {case}_{channels - 1:04d}, or " if channels > 1 else ""
            raise ValueError(f"{folder}: {case} {has}; the network needs {needs}one file")
    return [{"image": [str(path) for _, path in files]} for files in found.values()]


def _case_of(name: str, several: bool) -> tuple[str, int]:
    """The volume that a file belongs to, and the number of its channel; with one channel, only 0000 is a number."""
    match = CHANNEL.fullmatch(name)
    if match and (several or match[2] == "0000"):
        return match[1], int(match[2])
    return name, WHOLE


def name_mask(meta: dict[str, Any], saver: Any) -> dict[str, Any]:
    """The name of a volume's mask, which is that of the volume, for `SaveImaged`."""
    path = meta["filename_or_obj"]
    name = name_of(path) or Path(path).name
    match = CHANNEL.fullmatch(name)
    return {"subject": match[1] if match and match[2] == "0000" else name, "idx": None}
