"""Labels and classes: the labels that `dataset.json` declares, and the number of classes in the masks."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.errors import InputError


def declared_labels(data: str | Path) -> dict[int, str] | None:
    """Reads the names of the labels in the `dataset.json` of the Decathlon or of nnU-Net.

    Args:
        data: folder of the data set.

    Returns:
        dict from label to name, or None if there is no such file or it declares no labels.

    Raises:
        InputError: if the file can't be read or is not a valid description.
    """
    path = Path(data) / "dataset.json"
    if not os.path.isfile(path):
        return None
    try:
        labels = json.loads(path.read_text(encoding="utf-8")).get("labels")
        pairs = [(key, value) if str(key).isdigit() else (value, key) for key, value in (labels or {}).items()]
        return {int(label): str(name) for label, name in pairs} or None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check its permissions") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(path, f"not a description of a data set ({error})", "Correct or remove it") from None


def count_classes(
    prepared: Sequence[PreparedCase],
    cases: Sequence[Case],
    binary: bool,
    declared: Mapping[int, str] | None = None,
) -> int:
    """Returns the number of classes, background included, of the labels of all cases.

    Args:
        prepared: the prepared cases.
        cases: their Cases, for messages.
        binary: whether all labels above 0 are one class.
        declared: the result of `declared_labels`.

    Raises:
        InputError: if no mask has a foreground, a label below the largest one is missing, or a label is not
            declared.
    """
    case_of_label = {label: case for entry, case in zip(prepared, cases, strict=True) for label in entry.labels}
    if max(case_of_label) == 0:
        raise InputError(cases[0].mask.parent, "all masks are empty", "Name a folder with labelled masks")
    if binary:
        return 2
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
    shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
    cause = f"has label {largest}, but no mask has {shown}"
    raise InputError(mask, cause, "Number the labels 1, 2, … or give --binary")
