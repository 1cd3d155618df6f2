"""The ranges of the options that say which cases are held out."""

import argparse

from vnet_fast.command_line import natural_int
from vnet_fast.errors import InputError

# more cases than any data set of this kind
MAX_FOLDS = 10_000
# the value of --fold that trains every fold in turn
ALL = "all"


def fold_number(text: str) -> int | str:
    """The type of --fold: a number from 0, or ALL."""
    if text == ALL:
        return ALL
    try:
        return natural_int(text)
    except argparse.ArgumentTypeError:
        message = f"must be {ALL} or a whole number, 0 or more; got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def check_fold_options(folds: int, fold: int | str, split: str | None, data: str | None) -> None:
    """Raises an InputError if the options are out of range or contradict each other.

    Args:
        folds: number of folds; with a split that of its folds, which may be a single one.
        fold: the fold to validate on, or ALL.
        split: file of the folds, or None.
        data: folder of the volumes, or None.
    """
    if split and not data:
        raise InputError("--split", "given without --data", "Give the folder of the volumes too")
    if folds < 2 and not split:
        raise InputError("--folds", f"must be at least 2; got {folds}", "Keep some cases for validation")
    if folds > MAX_FOLDS:
        cause = f"has {folds} folds, more than {MAX_FOLDS}" if split else f"must be at most {MAX_FOLDS}; got {folds}"
        raise InputError(split or "--folds", cause, "Give at most one per case")
    if isinstance(fold, int) and fold >= folds:
        least = f"the {folds} of {split}" if split else f"--folds ({folds})"
        raise InputError("--fold", f"must be below {least}; got {fold}", "Folds count from 0")
