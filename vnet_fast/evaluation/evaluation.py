"""Measures predicted masks against reference masks, case by case, and summarises the cases."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vnet_fast.averages import defined_mean
from vnet_fast.data.classes import title_of
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.calibration import Calibration
from vnet_fast.evaluation.classes import choose_labels
from vnet_fast.evaluation.masks import label_arrays
from vnet_fast.evaluation.metrics import dice, dice_per_class, measure
from vnet_fast.evaluation.regions import REGIONS, regions
from vnet_fast.evaluation.score import Observer, score
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid
from vnet_fast.progress import track
from vnet_fast.regions import Region
from vnet_fast.text_table import printable, short_names

WHOLE = REGIONS[0]
SCORE = "score"

# one case: from label to region to the name of a metric (`metrics.METRICS`) to its value
Measures = dict[int, dict[str, dict[str, float]]]
# one case: its name, its predicted mask and its reference mask
Pair = tuple[str, Path, Path]


@dataclass
class Evaluation:
    """The metrics of one set of predictions.

    Args:
        name: of the set.
        cases: dict from the case's name to its measures; all cases have the same labels and regions.
        scores: dict from the case's name to label to the challenge's score; empty without an observer.
        class_names: dict from label to name, of the classes that have one.
        strays: dict from each predicted label that is none of the data set's classes, and therefore not measured, to
            the number of cases where it was predicted.
        calibration: dict from the case's name to label to its calibration, as `probabilities.calibrate` measures it.
        ignored: the label of the references whose voxels did not count, or None.
        unions: of labels, which are the classes if there are any.
    """

    name: str
    cases: dict[str, Measures]
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    class_names: Mapping[int, str] = field(default_factory=dict)
    strays: dict[int, int] = field(default_factory=dict)
    calibration: dict[str, dict[int, Calibration]] = field(default_factory=dict)
    ignored: int | None = None
    unions: Sequence[Region] = ()

    @property
    def labels(self) -> list[int]:
        """The labels, which are the same for all cases."""
        return list(next(iter(self.cases.values())))

    @property
    def mask_labels(self) -> list[int]:
        """The labels of masks that are in any class which was measured, sorted."""
        return sorted({label for number in self.labels for label in labels_of(number, self.unions)})

    @property
    def regions(self) -> list[str]:
        """The regions that were measured."""
        return list(next(iter(self.cases.values()))[self.labels[0]])

    def values(self, metric: str, label: int, region: str = WHOLE) -> list[float]:
        """The values of one metric, in the order of the cases; the score ignores the region."""
        if metric == SCORE:
            return [self.scores[name][label] for name in self.cases]
        return [case[label][region][metric] for case in self.cases.values()]

    def title(self, label: int) -> str:
        """What a label is called in a text; with its number if another one has its name."""
        title = title_of(label, self.class_names)
        return f"{title} ({label})" if list(self.class_names.values()).count(title) > 1 else title

    def absent(self, label: int) -> int:
        """The number of cases where neither mask has a label, so that there is nothing to rate."""
        return sum(map(math.isnan, self.values("dice", label)))

    def mean_dice(self, name: str) -> float:
        """The mean Dice of a case over the labels that one of its masks has; NaN if they have none."""
        return defined_mean(self.cases[name][label][WHOLE]["dice"] for label in self.labels)


def labels_of(number: int, unions: Sequence[Region]) -> tuple[int, ...]:
    """The labels of a class by its number, which is that of a union of labels if there are any."""
    return unions[number - 1].labels if unions else (number,)


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """Short, unique names for folders: the last part of the path, or all of it where that is not unique."""
    last_parts = [Path(folder).resolve().name for folder in folders]
    return [
        name if last_parts.count(name) == 1 else str(folder) for name, folder in zip(last_parts, folders, strict=True)
    ]


def picture_names(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """From the name of each evaluation to what pictures call it."""
    names = [evaluation.name for evaluation in evaluations]
    return dict(zip(names, short_names(names), strict=True))


def dice_of_pair(
    prediction_path: str | Path,
    reference_path: str | Path,
    num_classes: int,
    binary: bool = False,
    unions: Sequence[Region] = (),
    ignored: int | None = None,
) -> list[float]:
    """The Dice of each foreground class of one case, as `compare` measures it.

    Args:
        prediction_path, reference_path: of masks on the same grid.
        num_classes: background included.
        binary: whether all labels above 0 count as one.
        unions: of labels, which are the classes if there are any.
        ignored: the label of the reference whose voxels do not count.

    Returns:
        a number for each union, or num_classes - 1 numbers, NaN for a class that neither mask has.

    Raises:
        InputError: if a file can't be read, or the masks are not on the same grid.
    """
    prediction, reference = volumes.read_masks(prediction_path, reference_path)
    ours, theirs = label_arrays(prediction, reference, binary, ignored)
    if unions:
        return [dice(union.of(ours), union.of(theirs)) for union in unions]
    return dice_per_class(ours, theirs, num_classes)


def compare(
    prediction_path: str | Path,
    reference_path: str | Path,
    binary: bool = False,
    region_names: Iterable[str] = (WHOLE,),
    unions: Sequence[Region] = (),
    ignored: int | None = None,
) -> Measures:
    """Measures one case.

    Args:
        prediction_path, reference_path: of masks on the same grid.
        binary: whether all labels above 0 count as one.
        region_names: some of `regions.REGIONS`. The regions of a label are found in its own reference; if that is
            empty or has a single slice, every region is the whole volume.
        unions: of labels, which are measured instead of the labels if there are any.
        ignored: the label of the reference whose voxels do not count.

    Returns:
        dict from each label that one of the masks has, 1 and up, or from the number of each union, from 1 on, to region
        to metric to value.

    Raises:
        InputError: if a file can't be read, or the masks are not on the same grid.
    """
    prediction_mask, reference_mask = volumes.read_masks(prediction_path, reference_path)
    grid = Grid.of(reference_mask)
    prediction, reference = label_arrays(prediction_mask, reference_mask, binary, ignored)
    if unions:
        parts = {number: (union.of(prediction), union.of(reference)) for number, union in enumerate(unions, start=1)}
        return {number: _measure_regions(*pair, grid, region_names) for number, pair in parts.items()}
    labels = sorted({*np.unique(reference).tolist(), *np.unique(prediction).tolist()} - {0})
    return {label: _measure_regions(prediction == label, reference == label, grid, region_names) for label in labels}


def _measure_regions(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], grid: Grid, region_names: Iterable[str]
) -> dict[str, dict[str, float]]:
    boxes = regions(reference, grid.direction) if reference.any() else {}
    measured = {}
    for name in region_names:
        box = boxes.get(name, (slice(None),) * 3)
        if not reference[box].size:
            # a reference of a single slice has no thirds
            box = (slice(None),) * 3
        measured[name] = measure(prediction[box], reference[box], grid.spacing)
    return measured


def _compare_all(
    pairs: Iterable[Pair], binary: bool, region_names: Sequence[str], unions: Sequence[Region], ignored: int | None
) -> dict[str, Measures]:
    """The measures of each case by its name; raises the `InputErrors` of all cases that can't be compared."""
    cases, errors = {}, []
    for name, prediction, reference in pairs:
        try:
            cases[name] = compare(prediction, reference, binary, region_names, unions, ignored)
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputErrors(errors)
    return cases


def _with_labels(cases: dict[str, Measures], labels: Sequence[int], region_names: Sequence[str]) -> dict[str, Measures]:
    """The same cases with these labels and no others; a label that neither mask of a case has is not rated."""
    nothing = np.zeros((1, 1, 1), bool)
    unrated = dict.fromkeys(region_names, measure(nothing, nothing, (1, 1, 1)))
    return {name: {label: case.get(label, unrated) for label in labels} for name, case in cases.items()}


def _labels_in(sets: Sequence[dict[str, Measures]], metric: str) -> set[int]:
    """The labels whose volume in at least one mask is not 0; `metric` tells of which masks."""
    cases = [case for cases in sets for case in cases.values()]
    return {label for case in cases for label, by_region in case.items() if by_region[WHOLE][metric] > 0}


def _count_strays(cases: dict[str, Measures], labels: Sequence[int]) -> dict[int, int]:
    found = sorted({label for case in cases.values() for label in case} - set(labels))
    return {label: sum(label in case for case in cases.values()) for label in found}


def evaluate(
    names: Sequence[str],
    pairs: Sequence[Sequence[Pair]],
    binary: bool = False,
    all_regions: bool = False,
    observer: Observer | None = None,
    class_names: Mapping[int, str] | None = None,
    known: Iterable[int] = (),
    unions: Sequence[Region] = (),
    ignored: int | None = None,
) -> list[Evaluation]:
    """Measures several sets of predictions, and shows the progress.

    Args:
        names: of the sets.
        pairs: for each set a list of (name, prediction, reference).
        binary: whether all labels above 0 count as one.
        all_regions: whether base and apex are measured too; they always are with an observer.
        observer: None, or the values that `score.read_observer` returned.
        class_names: dict from label to name of the classes that the data set declares, or None; not with `binary`.
        known: further labels that the data set is known to have.
        unions, ignored: see `compare`.

    Returns:
        an Evaluation of each set, all with the same labels: those that are declared, known, or in a reference.

    Raises:
        InputErrors: for all masks that can't be compared, of the first set that has any.
    """
    region_names = REGIONS if all_regions or observer else (WHOLE,)
    sets = [
        _compare_all(track(cases, f"measuring {printable(name)}", "cases"), binary, region_names, unions, ignored)
        for name, cases in zip(names, pairs, strict=True)
    ]
    declared = {} if binary or not class_names else class_names
    if unions:
        declared = {number: union.name for number, union in enumerate(unions, start=1)}
    known = () if binary or unions else known
    labels = choose_labels({*declared, *known}, _labels_in(sets, "reference_ml"), _labels_in(sets, "prediction_ml"))
    evaluations = []
    for name, measured in zip(names, sets, strict=True):
        cases = _with_labels(measured, labels, region_names)
        scores, strays = _score_cases(cases, observer) if observer else {}, _count_strays(measured, labels)
        evaluations.append(Evaluation(name, cases, scores, declared, strays, {}, ignored, unions))
    return evaluations


def _score_cases(cases: dict[str, Measures], observer: Observer) -> dict[str, dict[int, float]]:
    """The challenge's score by the name of the case and label."""
    return {
        name: {label: score(by_region, observer) for label, by_region in case.items()} for name, case in cases.items()
    }
