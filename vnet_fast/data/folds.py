"""Cross-validation: divides the cases into folds."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split(cases: Sequence[T], folds: int, fold: int, seed: int) -> tuple[list[T], list[T]]:
    """Divides cases into training and validation cases.

    Each block of `folds` consecutive cases is dealt to the folds at random. If cases are numbered centre by centre,
    as in PROMISE12, each centre is thus spread evenly over the folds.

    Args:
        cases: the same list for every fold.
        folds: number of folds, at least 2.
        fold: the fold to validate on, counted from 0.
        seed: the same seed gives the same folds on every machine.

    Returns:
        (training, validation), lists in the order of `cases`.
    """
    # Python's generator, because its sequence stays the same in future versions
    generator = random.Random(seed)
    fold_of_case: list[int] = []
    for start in range(0, len(cases), folds):
        order = list(range(folds))
        generator.shuffle(order)
        fold_of_case += order[: len(cases) - start]
    training = [case for case, number in zip(cases, fold_of_case, strict=True) if number != fold]
    return training, [case for case, number in zip(cases, fold_of_case, strict=True) if number == fold]
