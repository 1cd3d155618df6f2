"""Means of Dice over cases and classes, without the values that are not defined.

Dice is NaN where neither mask of a case has the class. As in nnU-Net, such a value does not count.
"""

import math
from collections.abc import Iterable, Sequence


def defined_mean(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def class_means(cases: Iterable[Sequence[float]]) -> list[float]:
    """The mean of each class over the cases.

    Args:
        cases: for each case, the Dice of each class.
    """
    return [defined_mean(of_class) for of_class in zip(*cases, strict=True)]


def mean_dice(cases: Iterable[Sequence[float]]) -> float:
    """The mean over the classes of each class's mean over the cases, which nnU-Net calls `foreground_mean`.

    Args:
        cases: for each case, the Dice of each class.
    """
    return defined_mean(class_means(cases))
