"""Labels and classes: what `dataset.json` declares, and how many classes the masks make."""

import json
import os
from pathlib import Path

from vnet_fast.errors import InputError


def declared_labels(data):
    """The names of the labels in a Decathlon or nnU-Net `dataset.json`.

    Returns:
        dict from label to name, or None where there is no such file or it names no labels.

    Raises:
        InputError: if the file is not JSON.
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
        raise InputError(path, f"not a data set's description ({error})", "Mend it or take it away") from None


def count_classes(prepared, cases, binary, declared=None):
    """How many classes the labels of all cases make, background included.

    Args:
        prepared: list of PreparedCase.
        cases: their Cases, for messages.
        binary: whether all labels above 0 are one class.
        declared: None, or what `declared_labels` returned.

    Raises:
        InputError: if there is no foreground at all, a label is missing below the largest one, or
            one is not declared.
    """
    found = {label: case for entry, case in zip(prepared, cases, strict=True) for label in entry.labels}
    largest = max(found)
    if largest == 0:
        raise InputError(cases[0].mask.parent, "all masks are empty", "Name a folder with labelled masks")
    if binary:
        return 2
    if declared:
        strange = sorted(found.keys() - declared.keys() - {0})
        if strange:
            cause = f"has label {strange[0]}, which dataset.json does not name"
            raise InputError(found[strange[0]].mask, cause, "Mend the mask, or name the label there")
        largest = max(declared)
        gaps = sorted(set(range(1, largest)) - declared.keys())
        if gaps:
            raise InputError("dataset.json", f"names label {largest} but not {gaps[0]}", "Number them 1, 2, …")
        return largest + 1
    missing = sorted(set(range(1, largest)) - set(found))
    if missing and len(found.keys() - {0}) == 1:
        cause = f"is of 0 and {largest}, as are all masks that are not empty"
        raise InputError(found[largest].mask, cause, f"Give --binary to read {largest} as the foreground, or write 1")
    if missing:
        cause = f"has label {largest}, but no mask has {', '.join(map(str, missing[:5]))}"
        cause += ", …" if len(missing) > 5 else ""
        raise InputError(found[largest].mask, cause, "Number the labels 1, 2, … or give --binary")
    return largest + 1
