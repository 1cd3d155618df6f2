"""Regions: classes that are made of several labels of a mask, and may overlap.

    whole: 1 2 3 4
    core: 1 3 4

A network has an output for each region. In a mask, which has one label for each voxel, a voxel has a label that is in
just the regions that it is in, so that the regions of a predicted mask are found as those of a reference are.

Source:
    region-based training of nnU-Net (Isensee et al. 2021). Deviation: it writes regions one over the other, in an order
    and with labels that the user gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError

MAX_LABEL = 255
# the option of the label whose voxels do not count
IGNORE_LABEL = "--ignore-label"
# the option of the classes that are regions
REGIONS = "--regions"
MAX_DIGITS = 3
# of which a voxel may be in any
MAX_REGIONS = 12
HOW = 'Give regions as "NAME: LABEL LABEL …"'


@dataclass(frozen=True)
class Region:
    """A class of several labels.

    Args:
        name: of the class.
        labels: of a mask, 1 to 255, sorted.
    """

    name: str
    labels: tuple[int, ...]

    def of(self, mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Where a mask has one of the labels."""
        return np.isin(mask, self.labels)


def parse_regions(texts: Sequence[str], subject: object = REGIONS) -> tuple[Region, ...]:
    """The regions of texts such as `core: 1 3 4`.

    Args:
        texts: one for each region.
        subject: of messages.

    Raises:
        InputError: if a text is none, or a name or a set of labels occurs twice.
    """
    found: list[Region] = []
    check_number(texts, subject)
    for text in texts:
        name, colon, numbers = text.rpartition(":")
        labels = numbers.replace(",", " ").split()
        if not (colon and name.strip() and labels):
            raise InputError(subject, f"must be names with labels; got {text[:60]!r}", HOW)
        if not all(label.isascii() and label.isdigit() and len(label) <= MAX_DIGITS for label in labels):
            raise InputError(subject, f"must have labels from 1 to {MAX_LABEL}; got {text[:60]!r}", HOW)
        found.append(checked(name.strip(), list(map(int, labels)), found, subject))
    return tuple(found)


def check_ignored(ignored: int | None, regions: Sequence[Region], source: object = REGIONS) -> None:
    """Raises an InputError if the label whose voxels do not count can be in no mask, or belongs to a region.

    Args:
        ignored: the label, or None.
        regions: the classes, if they are regions.
        source: what declares the regions.
    """
    if ignored is None:
        return
    if ignored > MAX_LABEL:
        raise InputError(IGNORE_LABEL, f"must be at most {MAX_LABEL}; got {ignored}", "Give a label of the masks")
    if any(ignored in region.labels for region in regions):
        if source == REGIONS:
            raise InputError(IGNORE_LABEL, f"{ignored} is a label of a region", "Take it out of --regions")
        cause = f"{ignored} is a label of a region in {source}"
        raise InputError(IGNORE_LABEL, cause, "Ignore another label, or take it out of the region there")


def check_number(regions: Sequence[object], subject: object) -> None:
    """Raises an InputError if there are more regions than can overlap in any way."""
    if len(regions) > MAX_REGIONS:
        raise InputError(subject, f"names {len(regions)} regions, more than {MAX_REGIONS}", "Give fewer")


def checked(name: str, labels: Sequence[int], others: Sequence[Region], subject: object) -> Region:
    """A Region that is unlike others; raises an InputError if it can't be one."""
    region = Region(name, tuple(sorted(set(labels))))
    if not region.labels or region.labels[0] < 1 or region.labels[-1] > MAX_LABEL:
        raise InputError(subject, f"{name} must have labels from 1 to {MAX_LABEL}", HOW)
    for other in others:
        if other.name == name:
            raise InputError(subject, f"names {name} twice", HOW)
        if other.labels == region.labels:
            raise InputError(subject, f"{name} has the same labels as {other.name}", HOW)
    return region


def label_table(regions: Sequence[Region]) -> NDArray[np.uint8]:
    """The label that is written for each set of regions that a voxel is in.

    It is the lowest label that is in just these regions. If there is none, it is one of all these and as few others as
    can be, or else one whose regions differ least.

    Args:
        regions: at most MAX_REGIONS.

    Returns:
        (2 ^ R,) uint8, by the sum of 2 ^ i for the regions i, counted from 0.
    """
    codes: dict[int, int] = {}
    for label in sorted({label for region in regions for label in region.labels}, reverse=True):
        codes[_code(label, regions)] = label
    table = np.zeros(1 << len(regions), np.uint8)
    for code in range(1, len(table)):
        larger = [other for other in codes if other & code == code] or list(codes)
        table[code] = codes[min(larger, key=lambda other: ((other ^ code).bit_count(), codes[other]))]
    return table


def possible_labels(regions: Sequence[Region]) -> NDArray[np.bool_]:
    """The labels that a voxel of a mask can have, for each set of regions that a network finds it in.

    A voxel can lose any of the regions, as only the largest component of each is kept.

    Args:
        regions: at most MAX_REGIONS.

    Returns:
        (2 ^ R, 256) bool, by the sum of 2 ^ i for the regions i, counted from 0, and by the label; labels that are in
        the same regions are alike.
    """
    codes = np.array([_code(label, regions) for label in range(MAX_LABEL + 1)])
    table = label_table(regions)
    possible: NDArray[np.bool_] = codes == codes[table][:, None]
    for number in range(len(regions)):
        having = np.flatnonzero(np.arange(len(table)) >> number & 1)
        possible[having] |= possible[having ^ (1 << number)]
    return possible


def _code(label: int, regions: Sequence[Region]) -> int:
    return sum(1 << number for number, region in enumerate(regions) if label in region.labels)


def ambiguities(regions: Sequence[Region]) -> list[str]:
    """What predicted masks can't say: for each region that has no label of its own, a line."""
    table, texts = label_table(regions), []
    for number, region in enumerate(regions):
        label = int(table[1 << number])
        others = [other.name for other in regions if label in other.labels and other is not region]
        inner = any(set(region.labels) < set(other.labels) for other in regions)
        if others and not inner:
            names = ", ".join(others)
            texts.append(f"where {region.name} alone is predicted, masks have label {label}, which is {names} too")
    return texts


def written_names(regions: Sequence[Region]) -> dict[int, str]:
    """The names of the labels of a predicted mask: those of the smallest regions that have them."""
    by_size = sorted(regions, key=lambda region: len(region.labels))
    labels = sorted(set(label_table(regions).tolist()) - {0})
    return {label: next(region.name for region in by_size if label in region.labels) for label in labels}


def stored_regions(content: dict[str, Any]) -> tuple[Region, ...]:
    """The regions of a checkpoint's network, which older ones do not say.

    Args:
        content: what `vnet_fast.run.checkpoint.load` returned.
    """
    return tuple(Region(region["name"], tuple(region["labels"])) for region in content.get("regions", ()))
