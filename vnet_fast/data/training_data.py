"""What a run trains and validates on: found, split and prepared."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import pair_cases
from vnet_fast.data.folds import split
from vnet_fast.data.labels import count_classes, declared_labels
from vnet_fast.data.phantom import phantoms
from vnet_fast.errors import InputError, InputErrors

NUM_PHANTOMS = 100


@dataclass(frozen=True)
class Data:
    """Prepared cases, and the number of classes with the background."""

    training: list
    validation: list
    num_classes: int

    @property
    def names(self):
        """The names of the cases, as a checkpoint keeps them: dict from `training` and `validation`."""
        return {part: [case.name for case in getattr(self, part)] for part in ("training", "validation")}

    def check_unchanged(self, kept, run):
        """Makes sure that a run's cases are those that it was begun with.

        Args:
            kept: the `names` of then.
            run: its folder.
        """
        if kept == self.names:
            return
        before, now = ({str(name) for part in names.values() for name in part} for names in (kept, self.names))
        changed = sorted(before ^ now)
        cause = f"its cases have changed{': ' + ', '.join(changed[:5]) if changed else ''}"
        raise InputError(run, cause, "Restore them, or start a new run")


def load_data(config):
    """Finds, splits and prepares the cases; says how many there are.

    Args:
        config: the run's `configuration.Config`.

    Returns:
        Data.

    Raises:
        InputError, InputErrors: if there are too few cases, or any can't be used.
    """
    if config.data is None:
        check_folds("the phantoms", NUM_PHANTOMS, config)
        cases = phantoms(config.seed, NUM_PHANTOMS, config.volume, config.spacing)
        training, validation = split(cases, config.folds, config.fold, config.seed)
        print(f"data: {NUM_PHANTOMS} synthetic phantoms, {len(training)} to train on, {len(validation)} to validate")
        return Data(training, validation, 2)
    cases, prepared = _prepare(config)
    num_classes = count_classes(prepared, cases, config.binary, declared_labels(config.data))
    for doubt in doubts(cases, prepared):
        print(f"warning: {doubt}", file=sys.stderr)
    training, validation = split(prepared, config.folds, config.fold, config.seed)
    print(
        f"data: {len(cases)} cases in {config.data}, {len(training)} to train on, {len(validation)} to validate, "
        f"{num_classes - 1} {'class' if num_classes == 2 else 'classes'} (prepared volumes in {_cache_folder(config)})"
    )
    return Data(training, validation, num_classes)


def find_cases(config):
    """The cases of a run's folder, and an InputError for all that is wrong with what is there."""
    cases, errors = pair_cases(config.data, config.labels)
    try:
        check_folds(config.data, len(cases), config)
    except InputError as error:
        # what is without its pair may make up the number
        errors += [] if errors else [error]
    return cases, errors


def _prepare(config):
    cases, errors = find_cases(config)
    cache = Cache(_cache_folder(config), config.spacing, config.volume)
    try:
        prepared = cache.load(cases, progress_bar("preparing", len(cases)))
    except InputErrors as several:
        prepared = several.results
        errors += several.errors
    errors += same_volumes(cases, prepared)
    if errors:
        raise InputErrors(errors)
    return cases, prepared


def _cache_folder(config):
    return Path(config.cache or Path.home() / ".cache" / "vnet_fast")


def progress_bar(words, count):
    """A function that shows a bar over the results that it is called with, on a terminal."""
    quiet = not sys.stderr.isatty()
    return lambda results: tqdm(results, words, count, leave=False, disable=quiet, unit="case")


def same_volumes(cases, prepared):
    """What is there twice.

    Args:
        cases: list of Case.
        prepared: the PreparedCases of all of them or of some.

    Returns:
        an InputError for each case whose image is that of one before, under another name or in another
        format: trained on one and validated on the other, they would falsify the Dice.
    """
    by_name = {case.name: case for case in cases}
    first, errors = {}, []
    for entry in prepared:
        case = by_name[entry.name]
        original = first.setdefault(entry.fingerprint, case)
        if original is not case:
            cause = f"the same volume as {original.image.name}"
            errors.append(InputError(case.image, cause, "Keep one of the two: they would falsify the validation"))
    return errors


def doubts(cases, prepared):
    """What may be wrong with cases that can be used, worded as InputErrors that nobody raises."""
    found = []
    for case, entry in zip(cases, prepared, strict=True):
        lost = sorted(set(entry.labels) - set(np.unique(entry.mask).tolist()) - {0})
        if not any(entry.labels):
            found.append(InputError(case.mask, "the mask is empty", "Check that there is nothing to segment"))
        if lost:
            cause = f"label {' '.join(map(str, lost))} is lost on the network's grid"
            found.append(InputError(case.mask, cause, "Enlarge --volume, or choose a finer --spacing"))
    return found


def check_folds(subject, count, config):
    """Makes sure that each fold has a case."""
    if count < config.folds:
        remedy = f"Give --folds {count} or less, or add cases" if count > 1 else "Add cases"
        raise InputError(subject, f"{count} cases for {config.folds} folds", remedy)
