"""Cross-validation: divides the cases into folds, at random or as a file says."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vnet_fast.data.cases import names_of
from vnet_fast.data.settings import DataSettings
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.stored import read_list, reason, shown
from vnet_fast.text_table import printable

T = TypeVar("T")
# of the cases that a message names
SHOWN_NAMES = 5
FORM = 'It must be as nnU-Net\'s splits_final.json: a list with {"train": [names], "val": [names]} for each fold'


class Named(Protocol):
    """A case."""

    @property
    def name(self) -> str:
        """Of the case."""


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class Fold:
    """The cases of a fold, by their names.

    Args:
        training: to train on.
        validation: that are held out.
    """

    training: frozenset[str]
    validation: frozenset[str]


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


def divide(cases: Sequence[N], settings: DataSettings) -> tuple[list[N], list[N]]:
    """The training and validation cases of a run's fold, in the order of `cases`.

    Args:
        cases: the same list for every fold; with a split, at least those that it names.
        settings: of the run, with a single fold.

    Raises:
        InputError: if the split can't be used.
    """
    number = int(settings.fold)
    if settings.split is None:
        return split(cases, settings.folds, number, settings.seed)
    fold = folds_of(settings.split, settings.folds)[number]
    training, validation = ([case for case in cases if case.name in part] for part in (fold.training, fold.validation))
    return training, validation


def folds_of(path: str, count: int) -> list[Fold]:
    """The folds in the file of a run; an InputError unless there are as many as the run has."""
    folds = read_split(path)
    if len(folds) != count:
        cause = f"has {'1 fold' if len(folds) == 1 else f'{len(folds)} folds'}, and the run {count}"
        raise InputError(path, cause, "Restore it, or start a new run")
    return folds


def read_split(path: str) -> list[Fold]:
    """The folds in a file.

    Raises:
        InputError: if it can't be read or has no folds, a part of a fold has no cases, or the two have one in common.
    """
    try:
        content = read_list(path)
    except OSError as error:
        raise InputError(path, f"can't be read ({reason(error)})", "Check the path") from None
    except ValueError as error:
        raise InputError(path, f"no split into folds: {reason(error)}", FORM) from None
    if not content:
        raise InputError(path, "has no folds", FORM)
    return [_read_fold(path, number, entry) for number, entry in enumerate(content)]


def _read_fold(path: str, number: int, entry: object) -> Fold:
    parts = {}
    for part in ("train", "val"):
        names = entry.get(part) if isinstance(entry, dict) else None
        if not isinstance(names, list):
            raise InputError(path, f"no split into folds: fold {number} has no list {part!r}", FORM)
        for name in names:
            if not isinstance(name, str):
                raise InputError(path, f"no split into folds: fold {number} names {shown(name)} in {part!r}", FORM)
        if not names:
            raise InputError(path, f"fold {number} has no cases in {part!r}", "Name some there")
        parts[part] = frozenset(names)
    common = parts["train"] & parts["val"]
    if common:
        cause = f"fold {number} trains on cases that it holds out: {_listed(common)}"
        raise InputError(path, cause, "Name each case in one of the two")
    return Fold(parts["train"], parts["val"])


def check_disjoint(path: str) -> None:
    """Raises an InputError if two folds of a split hold out the same case, which has one prediction."""
    seen: set[str] = set()
    for number, fold in enumerate(read_split(path)):
        again = fold.validation & seen
        if again:
            cause = f"fold {number} holds out cases that a fold before it does: {_listed(again)}"
            raise InputError(path, cause, "Hold each case out once, or train the folds one by one, with --fold N")
        seen |= fold.validation


def chosen_cases(cases: Sequence[N], unpaired: Sequence[InputError], split: str, data: str) -> list[N]:
    """The cases that a split names in any of its folds.

    Args:
        cases: of the folder `data`.
        unpaired: of its files that belong to no case. Those of names that the split does not have do not matter.
        split: file of the folds.
        data: folder of the volumes.

    Raises:
        InputErrors: if the split can't be used, names other cases, or names what is not paired.
    """
    names = names_in(split)
    errors = [error for error in unpaired if names_of(error.subject) & names]
    unknown = names - {case.name for case in cases}
    if unknown:
        cause = f"names cases that {data} does not have: {_listed(unknown)}"
        errors.append(InputError(split, cause, "Name them as their files, without the ending, or add them"))
    if errors:
        raise InputErrors(errors)
    return [case for case in cases if case.name in names]


def named_cases(cases: Sequence[N], split: str | None) -> list[N]:
    """The cases that a split names in any of its folds; all if there is none."""
    if split is None:
        return list(cases)
    names = names_in(split)
    return [case for case in cases if case.name in names]


def names_in(split: str) -> set[str]:
    """The names in a split."""
    return set().union(*(fold.training | fold.validation for fold in read_split(split)))


def check_folds(subject: str, count: int, folds: int) -> None:
    """Raises an InputError about `subject` if there are fewer cases than folds."""
    if count < folds:
        remedy = f"Give --folds {count} or less, or add cases" if count > 1 else "Add cases"
        raise InputError(subject, f"{count} cases for {folds} folds", remedy)


def _listed(names: Collection[str]) -> str:
    rest = len(names) - SHOWN_NAMES
    return ", ".join(map(printable, sorted(names)[:SHOWN_NAMES])) + (f" and {rest} more" if rest > 0 else "")
