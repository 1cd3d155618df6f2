"""The names of a data set's classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vnet_fast.data.labels import declared_ignored, declared_labels, declared_regions
from vnet_fast.regions import Region, parse_regions

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
    return foreground(_declared_beside(folder if folder.is_dir() else folder.parent, allow_regions=True))


def names_of_checkpoint(content: Mapping[str, Any]) -> dict[int, str]:
    """The names of the classes of a checkpoint's network by label, 1 and up; none if it does not say any.

    Args:
        content: what `vnet_fast.run.checkpoint.load` returned.
    """
    return {label: name for label, name in enumerate(content.get("classes", ()), start=1) if name}


def find_regions(
    data: str | Path, labels: str | Path | None, given: Sequence[str] | None, binary: bool
) -> tuple[Region, ...]:
    """The regions of a data set to train on or to evaluate: those that are given, or that it declares.

    Args:
        data: folder of the data set, or of its volumes.
        labels: None, or the folder of the masks.
        given: texts of regions, or None.
        binary: whether all labels above 0 are one class, so that there are none.

    Raises:
        InputError: as `parse_regions` and `declared_regions`.
    """
    if given or binary:
        return parse_regions(given or ())
    masks = Path(labels).absolute() if labels else None
    beside = declared_regions(masks.parent) if masks is not None and masks.name in MASK_FOLDERS else ()
    return declared_regions(data) or beside


def find_ignored(data: str | Path, labels: str | Path | None, given: int | None) -> int | None:
    """The label to ignore of a data set to train on or to evaluate: the one that is given, or that it declares.

    Raises:
        InputError: as `declared_ignored`.
    """
    if given is not None:
        return given
    masks = Path(labels).absolute() if labels else None
    beside = declared_ignored(masks.parent) if masks is not None and masks.name in MASK_FOLDERS else None
    return declared_ignored(data) or beside


def find_declared(data: str | Path, labels: str | Path | None, binary: bool = False) -> dict[int, str] | None:
    """Finds the labels that a data set to train on declares, as `declared_labels` returns them.

    Args:
        data: folder of the data set, or of its volumes.
        labels: None, or the folder of the masks.
        binary: whether all labels above 0 are one class, so that regions do not matter.

    Raises:
        InputError: as `class_names`.
    """
    declared = declared_labels(data, binary)
    return declared if declared or labels is None else _declared_beside(Path(labels).absolute(), binary)


def foreground(declared: Mapping[int, str] | None) -> dict[int, str]:
    """The declared labels without the background."""
    return {label: name for label, name in (declared or {}).items() if label > 0}


def _declared_beside(masks: Path, allow_regions: bool) -> dict[int, str] | None:
    """What is declared in a folder of masks, or beside it."""
    declared = declared_labels(masks, allow_regions)
    if declared is None and masks.name in MASK_FOLDERS:
        return declared_labels(masks.parent, allow_regions)
    return declared


def title_of(label: int, names: Mapping[int, str]) -> str:
    """What a class is called in a text: its name, or its number if it has none."""
    return names.get(label) or f"class {label}"
