"""Compares predicted masks with reference masks: what `evaluate` and `evaluate_masks` have in common."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vnet_fast.command_line import option, path_text, positive_int
from vnet_fast.data import cases
from vnet_fast.data.classes import Classes, foreground
from vnet_fast.data.labels import DESCRIPTION, declared_ignored, declared_regions, described_in
from vnet_fast.errors import InputError
from vnet_fast.evaluation import tables
from vnet_fast.evaluation.classes import labels_in
from vnet_fast.evaluation.comparison import Comparison, check_same_cases, compare_pairs
from vnet_fast.evaluation.evaluation import Evaluation, Pair, evaluate, names_of
from vnet_fast.evaluation.probabilities import calibrate, check_numbers
from vnet_fast.evaluation.score import Observer, read_observer
from vnet_fast.evaluation.segment_names import check_names
from vnet_fast.interface.options import PathLike, checked
from vnet_fast.progress import quiet, warn
from vnet_fast.regions import REGIONS, check_ignored, parse_regions


@dataclass(frozen=True)
class Sets:
    """Sets of predictions with the reference masks of their cases.

    Args:
        names: of the sets.
        pairs: of each set, (name of the case, prediction, reference).
        unpredicted: of each set, the reference masks that have no prediction.
    """

    names: list[str]
    pairs: list[list[Pair]]
    unpredicted: list[list[Path]]

    @classmethod
    def find(cls, predictions: Sequence[str], labels: str) -> "Sets":
        """Pairs the masks of folders, or of single files.

        Raises:
            InputError, InputErrors: if a prediction has no reference, or sets have different cases.
        """
        if len({Path(folder).resolve() for folder in predictions}) < len(predictions):
            raise InputError("--predictions", "names a folder twice", "Name each folder once")
        names, found = names_of(predictions), [cases.pair_masks(folder, labels) for folder in predictions]
        pairs = [of_set for of_set, _ in found]
        check_same_cases({name: [case for case, _, _ in of_set] for name, of_set in zip(names, pairs, strict=True)})
        return cls(names, pairs, [others for _, others in found])


@dataclass(frozen=True)
class ClassSettings:
    """What the masks' labels stand for, as options say it; see the fields of the same name of `evaluate`."""

    labels: str
    binary: bool = False
    regions: tuple[str, ...] | None = None
    ignore_label: int | None = None

    @property
    def data(self) -> str:
        """What describes the classes is beside the reference masks."""
        return self.labels

    def check(self) -> None:
        """Raises an InputError if they contradict each other, or the regions that the data set declares."""
        regions = parse_regions(self.regions or ())
        check_ignored(self.ignore_label, regions)
        if self.regions and self.binary:
            raise InputError(REGIONS, "given with --binary", "Leave one of them out")
        if not (regions or self.binary):
            folder, ignored = described_in(self.labels), self.ignore_label
            # what can't be read is a warning
            with contextlib.suppress(InputError):
                ignored = declared_ignored(folder) if ignored is None else ignored
                regions = declared_regions(folder)
            check_ignored(ignored, regions, folder / DESCRIPTION)

    def classes(self, masks: Iterable[Path] = ()) -> Classes:
        """The classes, with what the data set or its masks declare; a warning if that can't be read."""
        try:
            return Classes.of(self).named_by(masks)
        except InputError as error:
            # masks can be compared without what the data set declares
            warn(str(error))
            return Classes(self.binary, None, parse_regions(self.regions or ()), self.ignore_label)


def measure(
    sets: Sets, settings: ClassSettings, observer: Observer | None = None, calibration: bool = False
) -> list[Evaluation]:
    """Measures sets of predictions.

    Args:
        sets: the Sets.
        settings: what their labels stand for.
        observer: a second observer's means, for the challenge's score.
        calibration: whether the calibration of the probabilities beside the masks is measured too.

    Raises:
        InputErrors: for all masks that can't be compared.
    """
    if calibration:
        # before anything is measured, which takes longer
        for of_set in sets.pairs:
            check_numbers(of_set)
    classes = settings.classes([*(reference for _, _, reference in sets.pairs[0]), *sets.unpredicted[0]])
    if not classes.binary:
        check_names(itertools.chain(*sets.pairs), foreground(classes.declared), classes.regions)
    # labels of references that have no prediction belong to the data set too, whether it declares them or not
    are_labels = not (classes.binary or classes.regions)
    known = labels_in(sets.unpredicted[0]) - {classes.ignored} if are_labels else set()
    thirds = settings.regions is not None and not settings.regions
    evaluations = evaluate(
        sets.names,
        sets.pairs,
        settings.binary,
        thirds,
        observer,
        classes.names,
        known,
        classes.regions,
        classes.ignored,
    )
    if calibration:
        calibrate(evaluations, sets.pairs, settings.binary, classes.regions, classes.ignored)
    return evaluations


class Table(list[dict[str, Any]]):
    """The metrics of predicted masks: a row, which is a dict, for each set of predictions, case, class and region.

    `pandas.DataFrame(table)` makes a data frame of it. Where a metric is not defined, such as Dice of a class that
    neither mask has, it is NaN; distances to an empty mask are infinite. `print(table)` shows it as the command does.

    Args:
        evaluations: of the sets.

    Attributes:
        evaluations: of the sets.
        comparisons: of each pair of sets, with a paired test.
    """

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        super().__init__(tables.rows(evaluations))
        self.evaluations = list(evaluations)
        self.comparisons: list[Comparison] = compare_pairs(evaluations) if len(evaluations) > 1 else []

    @property
    def mean_dice(self) -> dict[str, float]:
        """The mean Dice of each set: the mean over the classes of each class's mean over the cases."""
        return {evaluation.name: tables.mean_dice(evaluation) for evaluation in self.evaluations}

    def __str__(self) -> str:
        return "\n".join(tables.text(self.evaluations, self.comparisons))


@dataclass(frozen=True)
class _Options:
    """The types of the command's options that `evaluate_masks` has too."""

    binary: bool = option(False, "", action="store_true")
    regions: tuple[str, ...] | None = option(None, "", nargs="*")
    ignore_label: int | None = option(None, "", type=positive_int)
    observer: str | None = option(None, "", type=path_text)
    calibration: bool = option(False, "", action="store_true")

    @classmethod
    def of(cls, regions: Sequence[str] | None, **given: object) -> "_Options":
        """The options that are given, checked."""
        if isinstance(regions, str):
            raise TypeError(f"regions must be a sequence of texts; got the text {regions!r}")
        # no region at all is a request of its own
        thirds = isinstance(regions, Sequence) and not regions
        options = cls(**checked(cls, {**given, "regions": None if thirds else regions}, "evaluate_masks"))
        return replace(options, regions=() if thirds else options.regions and tuple(options.regions))


def evaluate_masks(
    predictions: PathLike | Sequence[PathLike],
    labels: PathLike,
    *,
    binary: bool = False,
    regions: Sequence[str] | None = None,
    ignore_label: int | None = None,
    observer: PathLike | None = None,
    calibration: bool = False,
) -> Table:
    """Measures predicted masks against reference masks: Dice, surface distances and volumes of each case and class.

    Args:
        predictions: folder of predicted masks, or the file of one; or several folders with the same cases, which are
            compared with a paired test.
        labels: folder of the reference masks, with or without their volumes; or the file of one.
        binary: whether all labels above 0 are one foreground class.
        regions: of several labels, each as `NAME: LABEL LABEL`, which are measured instead of the labels. An empty
            sequence measures the whole, and base and apex, the cranial and caudal thirds of the reference's slices.
        ignore_label: label of the reference masks whose voxels do not count.
        observer: TOML file with a second observer's means, for the challenge's score.
        calibration: whether the calibration of the probabilities beside the masks is measured too.

    Returns:
        the metrics, a row for each case, class and region.

    Raises:
        InputError, InputErrors: if masks can't be read, have no counterpart or another grid than that, or an option
            has a value that it can't have.
        TypeError, ValueError: if there are no predictions, or `regions` is a single text.
    """
    folders = [predictions] if isinstance(predictions, str | os.PathLike) else list(predictions)
    if not folders:
        raise ValueError("predictions must name at least one")
    options = _Options.of(regions, binary=binary, ignore_label=ignore_label, observer=observer, calibration=calibration)
    settings = ClassSettings(os.fspath(labels), options.binary, options.regions, options.ignore_label)
    with quiet():
        settings.check()
        means = read_observer(options.observer) if options.observer is not None else None
        sets = Sets.find([os.fspath(folder) for folder in folders], os.fspath(labels))
        return Table(measure(sets, settings, means, options.calibration))
