"""Regions: classes that are made of several labels of a mask, and may overlap.

    whole: 1 2 3 4
    core: 1 3 4

A network has an output for each region. In a mask, which has one label for each voxel, larger regions are written first
and smaller ones over them. The label of a region is one that it has and no smaller one, so that the regions of a
predicted mask are found as those of a reference are.

Source:
    region-based training of nnU-Net (Isensee et al. 2021). Deviation: the order of writing and the labels follow from
    the regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError

MAX_LABEL = 255
MAX_DIGITS = 3
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


def parse_regions(texts: Sequence[str], subject: object = "--regions") -> tuple[Region, ...]:
    """The regions of texts such as `core: 1 3 4`.

    Args:
        texts: one for each region.
        subject: of messages.

    Raises:
        InputError: if a text is none, or a name or a set of labels occurs twice.
    """
    found: list[Region] = []
    for text in texts:
        name, colon, numbers = text.rpartition(":")
        labels = numbers.replace(",", " ").split()
        if not (colon and name.strip() and labels):
            raise InputError(subject, f"must be names with labels; got {text[:60]!r}", HOW)
        if not all(label.isascii() and label.isdigit() and len(label) <= MAX_DIGITS for label in labels):
            raise InputError(subject, f"must have labels from 1 to {MAX_LABEL}; got {text[:60]!r}", HOW)
        found.append(checked(name.strip(), list(map(int, labels)), found, subject))
    return tuple(found)


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


def writing_order(regions: Sequence[Region]) -> list[tuple[int, int]]:
    """The numbers of the regions in the order in which they are written into a mask, each with its label there."""
    order = sorted(range(len(regions)), key=lambda number: -len(regions[number].labels))
    written = []
    for position, number in enumerate(order):
        later = {label for after in order[position + 1 :] for label in regions[after].labels}
        own = [label for label in regions[number].labels if label not in later]
        written.append((number, (own or list(regions[number].labels))[0]))
    return written


def written_names(regions: Sequence[Region]) -> dict[int, str]:
    """The names of the labels of a predicted mask: those of the smallest regions that have them."""
    return {label: regions[number].name for number, label in writing_order(regions)}


def stored_regions(content: dict[str, Any]) -> tuple[Region, ...]:
    """The regions of a checkpoint's network, which older ones do not say.

    Args:
        content: what `vnet_fast.run.checkpoint.load` returned.
    """
    return tuple(Region(region["name"], tuple(region["labels"])) for region in content.get("regions", ()))
