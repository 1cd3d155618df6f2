"""Looks at every case of a folder and trains nothing: a table of what is there, and all that is wrong."""

import sys
from dataclasses import dataclass

import numpy as np

from vnet_fast.data.cases import Case
from vnet_fast.data.labels import count_classes, declared_labels
from vnet_fast.data.preparation import PreparedCase, for_each, read_case
from vnet_fast.data.training_data import doubts, find_cases, progress_bar, same_volumes
from vnet_fast.errors import InputError, InputErrors

# voxels along an axis below which a volume is hardly one
FEW_VOXELS = 4
TITLES = ("case", "size", "spacing mm", "intensities", "labels")


@dataclass(frozen=True)
class Looked:
    """What a case's files hold.

    Args:
        case: the Case.
        size: voxels, x y z.
        spacing: mm, x y z.
        intensities: the lowest and the highest.
        prepared: the PreparedCase, with its labels.
    """

    case: Case
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    intensities: tuple[float, float]
    prepared: PreparedCase

    def row(self):
        """Its line of the table, as words below TITLES."""
        low, high = self.intensities
        return (
            self.case.name,
            " x ".join(map(str, self.size)),
            " x ".join(f"{length:.4g}" for length in self.spacing),
            f"{low:.6g} to {high:.6g}",
            " ".join(map(str, self.prepared.labels)),
        )


def check(config):
    """Reads every case as training would, and writes nothing.

    Args:
        config: the `configuration.Config` of the training.

    Returns:
        exit code 0.

    Raises:
        InputError, InputErrors: of all that training would refuse.
    """
    if config.data is None:
        raise InputError("--check", "given without --data", "Name the folder of the volumes too")
    cases, errors = find_cases(config)
    try:
        looked = for_each(lambda case: _look(case, config), cases, progress_bar("checking", len(cases)))
    except InputErrors as several:
        looked = several.results
        errors += several.errors
    _print_table([each.row() for each in looked])
    sound, prepared = [each.case for each in looked], [each.prepared for each in looked]
    warnings = doubts(sound, prepared) + [doubt for each in looked for doubt in _few_voxels(each)]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    errors += same_volumes(cases, prepared)
    # with cases left out, labels would be missing
    errors += [] if errors else _of_labels(config, sound, prepared)
    _print(f"{config.data}: {len(sound)} of {len(cases)} cases can be read, {len(warnings)} warnings")
    if errors:
        raise InputErrors(errors)
    return 0


def _look(case, config):
    image, _, prepared = read_case(case, config.spacing, config.volume)
    low, high = (float(bound) for bound in _bounds(image))
    return Looked(case, image.GetSize(), image.GetSpacing(), (low, high), prepared)


def _bounds(image):
    from vnet_fast.io.volumes import sitk

    values = sitk.GetArrayViewFromImage(image)
    return np.min(values), np.max(values)


def _few_voxels(looked):
    if min(looked.size) >= FEW_VOXELS:
        return []
    size = " x ".join(map(str, looked.size))
    return [InputError(looked.case.image, f"only {size} voxels", "Check that it is a whole volume")]


def _of_labels(config, cases, prepared):
    try:
        count_classes(prepared, cases, config.binary, declared_labels(config.data))
    except InputError as error:
        return [error]
    return []


def _print_table(rows):
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    for row in (TITLES, *rows):
        _print("  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True)).rstrip())


def _print(line):
    # a name that is no text stays visible where it can't be printed
    print(line.encode("utf-8", "backslashreplace").decode())
