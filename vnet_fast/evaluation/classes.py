"""The classes that an evaluation measures, and their names."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from vnet_fast.data.labels import declared_labels

# folders of masks that stand beside the `dataset.json` of the Decathlon or of nnU-Net
MASK_FOLDERS = ("labelsTr", "labelsTs")


def class_names(labels: str | Path) -> dict[int, str]:
    """Finds the classes that a data set declares.

    Args:
        labels: the folder of the reference masks or of the data set, or the file of one mask.

    Returns:
        dict from label, 1 and up, to name; empty without a `dataset.json`.

    Raises:
        InputError: if the `dataset.json` can't be read.
    """
    folder = Path(labels).absolute()
    if not folder.is_dir():
        folder = folder.parent
    declared = declared_labels(folder)
    if declared is None and folder.name in MASK_FOLDERS:
        declared = declared_labels(folder.parent)
    return {label: name for label, name in (declared or {}).items() if label > 0}


def title_of(label: int, names: Mapping[int, str]) -> str:
    """What a class is called in a text: its name, or its number if it has none."""
    return names.get(label) or f"class {label}"


def choose_labels(declared: Iterable[int], referenced: Iterable[int], predicted: Iterable[int]) -> list[int]:
    """Chooses the labels to measure.

    A label that only predictions have, such as a stray voxel, is none of the data set's classes, unless no reference
    has any label: then the predictions' labels are all that there is.

    Args:
        declared: labels that the data set declares.
        referenced: labels that the reference masks have.
        predicted: labels that the predicted masks have.

    Returns:
        at least one label, sorted.
    """
    known = set(declared) | set(referenced)
    return sorted(known or set(predicted)) or [1]
