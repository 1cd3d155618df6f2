"""Folds of the cases: which are trained on, and which are validated on."""

import random


def split(cases, folds, fold, seed):
    """Training and validation cases.

    Cases are taken in order in blocks of `folds`, and each block is dealt to the folds at random:
    so cases that were numbered centre by centre, as PROMISE12's, spread evenly over the folds.

    Args:
        cases: any list, the same one for every fold.
        folds: at least 2.
        fold: from 0, the one to validate on.
        seed: the same seed gives the same folds on every machine.

    Returns:
        (training, validation), lists in the order of `cases`.
    """
    # Python's own generator: its sequence is promised to stay the same
    generator = random.Random(seed)
    dealt = []
    for start in range(0, len(cases), folds):
        order = list(range(folds))
        generator.shuffle(order)
        dealt += order[: len(cases) - start]
    training = [case for case, at in zip(cases, dealt, strict=True) if at != fold]
    return training, [case for case, at in zip(cases, dealt, strict=True) if at == fold]
