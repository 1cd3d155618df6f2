"""The names of a data set's classes."""

from collections.abc import Mapping
from pathlib import Path

from vnet_fast.data.labels import declared_labels

# folders of masks that stand beside the `dataset.json` of the Decathlon or of nnU-Net
MASK_FOLDERS = ("labelsTr", "labelsTs")


def class_names(labels: str | Path) -> dict[int, str]:
    """Finds the classes that a data set declares.

    Args:
        labels: the folder of the data set or of its reference masks, or the file of one mask.

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
