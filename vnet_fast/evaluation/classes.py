"""The classes that an evaluation measures."""

from collections.abc import Iterable


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
