"""Finds the volumes of a folder, and names their masks."""

import re
from pathlib import Path
from typing import Any

SUFFIXES = (".nii.gz", ".nii")
CHANNEL = re.compile(r"(.+)_(\d{4})")


def name_of(path: str | Path) -> str | None:
    """The name of a NIfTI file without its suffix; None if it is none."""
    name = Path(path).name
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def find_images(folder: str, channels: int) -> list[dict[str, list[str]]]:
    """The files of the volumes in a folder, one, or one for each channel: CASE_0000, CASE_0001 and so on.

    Raises:
        ValueError: if there are none, or a channel is missing.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(Path(folder).iterdir()):
        name = name_of(path)
        if name is None or path.name.startswith(".") or name.endswith("_segmentation"):
            continue
        match = CHANNEL.fullmatch(name) if channels > 1 else None
        found.setdefault(match[1] if match else name, []).append(str(path))
    wrong = [name for name, files in found.items() if len(files) not in (1, channels)]
    if wrong or not found:
        raise ValueError(f"{folder}: {wrong[0]} lacks a channel" if wrong else f"{folder}: no volumes")
    return [{"image": files} for files in found.values()]


def name_mask(meta: dict[str, Any], saver: Any) -> dict[str, Any]:
    """The name of a volume's mask, which is that of the volume, for `SaveImaged`."""
    path = meta["filename_or_obj"]
    name = name_of(path) or Path(path).name
    match = CHANNEL.fullmatch(name)
    return {"subject": match[1] if match and match[2] == "0000" else name, "idx": None}
