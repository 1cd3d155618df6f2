"""Labels and classes: the labels that `dataset.json` declares, and the number of classes in the masks."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import IGNORED, PreparedCase
from vnet_fast.errors import InputError
from vnet_fast.regions import REGIONS, Region, check_number, checked
from vnet_fast.stored import read_object, reason, shown

# the file in which the Decathlon and nnU-Net describe a data set
DESCRIPTION = "dataset.json"
# the folders of the Decathlon and of nnU-Net beside it
FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
# what a mask of uint8 can hold
MAX_LABEL = 255
MAX_DIGITS = 3
# nnU-Net's name of a label that does not count in losses and metrics
IGNORE = "ignore"


def described_in(*paths: str | Path | None) -> Path:
    """The folder of a data set whose `dataset.json` describes some of its files.

    Args:
        *paths: of the data set, of folders in it, or of files in those; the first one is returned if there is none.
    """
    folders: list[Path] = []
    for path in (Path(path).absolute() for path in paths if path is not None):
        folder = path if path.is_dir() else path.parent
        folders += [folder, *([folder.parent] if folder.name in FOLDERS else [])]
    return next((folder for folder in folders if os.path.lexists(folder / DESCRIPTION)), folders[0])


def declared_labels(data: str | Path, allow_regions: bool = False) -> dict[int, str] | None:
    """Reads the names of the labels in the `dataset.json` of the Decathlon or of nnU-Net.

    Args:
        data: folder of the data set.
        allow_regions: whether regions of several labels are left out, and not refused.

    Returns:
        dict from label, 0 to 255, to name, or None if there is no such file or it declares no labels. The label to
            ignore is none of them.

    Raises:
        InputError: if the file can't be read, is not a valid description, or describes regions of several labels.
    """
    path = Path(data) / DESCRIPTION
    if not os.path.lexists(path):
        return None
    labels = read_description(path).get("labels")
    if labels is None:
        return None
    if not isinstance(labels, dict):
        raise not_described(path, "its labels must be an object with a name for each label")
    declared: dict[int, str] = {}
    for key, value in labels.items():
        if allow_regions and isinstance(value, list):
            continue
        label, name = _label_and_name(path, key, value)
        if _is_ignored(key, value):
            continue
        if label in declared:
            raise not_described(path, f"names label {label} twice")
        declared[label] = name
    return declared or None


def read_description(path: Path) -> dict[str, Any]:
    """The object in a `dataset.json`; an InputError if it can't be read."""
    try:
        return read_object(path)
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    except ValueError as error:
        raise not_described(path, reason(error)) from None


def _label_and_name(path: Path, key: str, value: object) -> tuple[int, str]:
    """Label and name of an entry: `"1": "prostate"` in the Decathlon, `"prostate": 1` in nnU-Net."""
    if isinstance(value, list):
        cause = f"its label {shown(key)} is a region of several labels"
        raise InputError(path, cause, "Give each label a name of its own there, as it is in the masks")
    number, name = (key, value) if _is_digits(key) and isinstance(value, str) else (value, key)
    if type(number) is float and number.is_integer():
        number = int(number)
    if not (type(number) is int or _is_digits(number)):
        raise not_described(path, f"its label {shown(key)} must have a whole number; got {shown(value)}")
    digits = str(number).lstrip("0") or "0"
    # a text may have more digits than Python converts
    label = int(digits) if len(digits) <= MAX_DIGITS else -1
    if not 0 <= label <= MAX_LABEL:
        raise not_described(path, f"its label {shown(key)} must be from 0 to {MAX_LABEL}; got {shown(number)}")
    if not is_storable(name):
        raise not_described(path, f"the name of label {label} is no text ({shown(name)})")
    return label, name


def _is_ignored(key: str, value: object) -> bool:
    """Whether an entry names the label to ignore: `"ignore": 3` in nnU-Net."""
    name = value if _is_digits(key) and isinstance(value, str) else key
    return not isinstance(value, list) and name.lower() == IGNORE


def declared_ignored(data: str | Path) -> int | None:
    """Reads the label to ignore in the `dataset.json` of nnU-Net; None if it has none.

    Args:
        data: folder of the data set.

    Raises:
        InputError: if the file can't be read, or the label is none.
    """
    path = Path(data) / DESCRIPTION
    labels = read_description(path).get("labels") if os.path.lexists(path) else None
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if _is_ignored(key, value):
            label, _ = _label_and_name(path, key, value)
            if label == 0:
                raise not_described(path, "its label to ignore must be above 0")
            return label
    return None


def labels_of_no_region(prepared: Sequence[PreparedCase], regions: Sequence[Region]) -> list[int]:
    """The labels of masks that are part of no region, so that they are background; none without regions."""
    present = {label for case in prepared for label in case.labels} - {0}
    return sorted(present - {label for region in regions for label in region.labels}) if regions else []


def without_ignored(case: PreparedCase, ignored: int | None) -> PreparedCase:
    """A case whose voxels to ignore are IGNORED, and whose labels are the others.

    Raises:
        InputError: if IGNORED is one of these.
    """
    if ignored is None:
        return case
    if IGNORED in case.labels and ignored != IGNORED:
        cause = f"{case.name} has label {IGNORED}, which no mask may have beside one that is ignored"
        raise InputError("--ignore-label", cause, f"Write another label instead of {IGNORED}")
    mask = np.where(case.mask == ignored, np.uint8(IGNORED), case.mask)
    return replace(case, mask=mask, labels=tuple(label for label in case.labels if label != ignored) or (0,))


def is_storable(name: str) -> bool:
    """Whether a name can be printed and stored: UTF-8 has no surrogates, and a checkpoint no zero bytes."""
    return "\0" not in name and not any("\ud800" <= character <= "\udfff" for character in name)


def _is_digits(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()


def not_described(path: Path, cause: str) -> InputError:
    """The error about a `dataset.json` that describes no data set."""
    return InputError(path, f"not a description of a data set ({cause})", "Correct or remove it")


def declared_regions(data: str | Path) -> tuple[Region, ...]:
    """Reads the regions in the `dataset.json` of nnU-Net: there, all labels but the background are regions if one is a
    list.

    Args:
        data: folder of the data set.

    Returns:
        the regions; none if there is no such file, or it has no list.

    Raises:
        InputError: if the file can't be read, or has a region that is none.
    """
    path = Path(data) / DESCRIPTION
    labels = read_description(path).get("labels") if os.path.lexists(path) else None
    if not isinstance(labels, dict) or not any(isinstance(value, list) for value in labels.values()):
        return ()
    found: list[Region] = []
    for name, value in labels.items():
        if _is_ignored(name, value):
            continue
        several = value if isinstance(value, list) else [value]
        if not all(type(label) is int for label in several) or not is_storable(name):
            raise not_described(path, f"its region {shown(name)} must have whole numbers; got {shown(value)}")
        if several != [0]:
            found.append(checked(name, several, found, path))
    check_number(found, path)
    return tuple(found)


def count_classes(
    prepared: Sequence[PreparedCase],
    cases: Sequence[Case],
    binary: bool,
    declared: Mapping[int, str] | None = None,
    regions: Sequence[Region] = (),
    source: str | Path = REGIONS,
) -> int:
    """Returns the number of classes, background included, of the labels of all cases.

    Args:
        prepared: the prepared cases.
        cases: their Cases, for messages.
        binary: whether all labels above 0 are one class.
        declared: the result of `declared_labels`.
        regions: that labels belong to, whatever they are.
        source: what declares the regions, for messages.

    Raises:
        InputError: if no mask has a foreground, or any label of a region, a label below the largest one is missing, or
            a label is not declared.
    """
    case_of_label = {label: case for entry, case in zip(prepared, cases, strict=True) for label in entry.labels}
    if max(case_of_label) == 0:
        raise InputError(cases[0].mask.parent, "all masks are empty", "Name a folder with labelled masks")
    if binary:
        return 2
    for region in regions:
        if not case_of_label.keys() & set(region.labels):
            cause = f"{region.name} has the labels {' '.join(map(str, region.labels))}, which no mask has"
            raise InputError(source, cause, "Correct its labels")
    if regions:
        return max(case_of_label) + 1
    if declared:
        _check_declared(case_of_label, declared)
        return max(declared) + 1
    _check_numbering(case_of_label)
    return max(case_of_label) + 1


def _check_declared(case_of_label: Mapping[int, Case], declared: Mapping[int, str]) -> None:
    undeclared = sorted(case_of_label.keys() - declared.keys() - {0})
    if undeclared:
        cause = f"has label {undeclared[0]}, which dataset.json does not name"
        raise InputError(case_of_label[undeclared[0]].mask, cause, "Correct the mask, or name the label there")
    largest = max(declared)
    gaps = sorted(set(range(1, largest)) - declared.keys())
    if gaps:
        raise InputError("dataset.json", f"names label {largest} but not {gaps[0]}", "Number the labels 1, 2, …")


def _check_numbering(case_of_label: Mapping[int, Case]) -> None:
    largest = max(case_of_label)
    missing = sorted(set(range(1, largest)) - case_of_label.keys())
    if not missing:
        return
    mask = case_of_label[largest].mask
    if len(case_of_label.keys() - {0}) == 1:
        cause = f"has only the labels 0 and {largest}, like all masks that are not empty"
        raise InputError(mask, cause, f"Give --binary to treat {largest} as the foreground, or write 1 instead")
    listed = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    cause = f"has label {largest}, but no mask has {listed}"
    raise InputError(mask, cause, "Number the labels 1, 2, … or give --binary")
