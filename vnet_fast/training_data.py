"""What a run trains and validates on: found, split and prepared."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vnet_fast import dataset
from vnet_fast.cache import Cache
from vnet_fast.errors import InputError
from vnet_fast.phantom import phantoms

PHANTOMS = 100


@dataclass(frozen=True)
class Data:
    """Prepared cases, and the number of classes with the background."""

    training: list
    validation: list
    num_classes: int


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
        _check_folds("the phantoms", PHANTOMS, config)
        cases = phantoms(config.seed, PHANTOMS, config.volume, config.spacing)
        training, validation = dataset.split(cases, config.folds, config.fold, config.seed)
        print(f"data: {PHANTOMS} synthetic phantoms, {len(training)} to train on, {len(validation)} to validate")
        return Data(training, validation, 2)
    cases = dataset.find_cases(config.data, config.labels)
    _check_folds(config.data, len(cases), config)
    cache = Cache(config.cache or Path.home() / ".cache" / "vnet_fast", config.spacing, config.volume)
    quiet = not sys.stderr.isatty()
    prepared = cache.load(
        cases, lambda results: tqdm(results, "preparing", len(cases), leave=False, disable=quiet, unit="case")
    )
    num_classes = dataset.count_classes(prepared, cases, config.binary, dataset.declared_labels(config.data))
    training, validation = dataset.split(prepared, config.folds, config.fold, config.seed)
    print(
        f"data: {len(cases)} cases in {config.data}, {len(training)} to train on, {len(validation)} to validate, "
        f"{num_classes - 1} {'class' if num_classes == 2 else 'classes'} (prepared volumes in {cache.folder})"
    )
    return Data(training, validation, num_classes)


def _check_folds(subject, count, config):
    if count < config.folds:
        remedy = f"Give --folds {count} or less, or add cases" if count > 1 else "Add cases"
        raise InputError(subject, f"{count} cases for {config.folds} folds", remedy)
