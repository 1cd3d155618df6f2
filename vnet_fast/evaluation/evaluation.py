"""Predicted masks against reference masks: each case measured, and what is said of all of them.

A case's measures are a dict from label to region to the name of a metric (`metrics.METRICS`) to a number.
"""

import math
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.metrics import METRICS, measure
from vnet_fast.evaluation.regions import REGIONS, regions
from vnet_fast.evaluation.score import score
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid

WHOLE = REGIONS[0]
SCORE = "score"


@dataclass
class Evaluation:
    """One folder of predictions, measured.

    Args:
        name: of the predictions.
        cases: dict from the case's name to its measures, of all the labels of all cases.
        scores: dict from the case's name to label to the challenge's score; empty without an observer.
    """

    name: str
    cases: dict
    scores: dict = field(default_factory=dict)

    @property
    def labels(self):
        """The labels of the cases, which all of them have."""
        return list(next(iter(self.cases.values())))

    @property
    def regions(self):
        """The regions that were measured."""
        return list(next(iter(self.cases.values()))[self.labels[0]])

    def values(self, metric, label, region=WHOLE):
        """One metric's numbers, in the order of the cases; `score` is of all regions together."""
        if metric == SCORE:
            return [self.scores[name][label] for name in self.cases]
        return [case[label][region][metric] for case in self.cases.values()]

    @property
    def labels_of_references(self):
        """The labels that some reference has; all if none has any."""
        found = [label for label in self.labels if any(self.values("reference_ml", label))]
        return found or self.labels

    def mean_dice(self, name):
        """A case's Dice, the mean over the labels that the references have."""
        return float(np.mean([self.cases[name][label][WHOLE]["dice"] for label in self.labels_of_references]))


def names_of(folders):
    """Short names of folders, no two the same: their own, or their paths."""
    last = [Path(folder).resolve().name for folder in folders]
    return [name if last.count(name) == 1 else str(folder) for name, folder in zip(last, folders, strict=True)]


def compare(prediction_path, reference_path, binary=False, names=(WHOLE,)):
    """The measures of one case.

    Args:
        prediction_path, reference_path: of masks on one grid.
        binary: whether all labels above 0 are one.
        names: the regions, of `regions.REGIONS`. A label's regions are those of its own reference; where
            that is empty or a single slice, they are the whole.

    Returns:
        dict from each label that one of the two has, 1 and up, to region to metric to value.

    Raises:
        InputError: if a file can't be read or the two are not on the same grid.
    """
    reference = volumes.read_mask(reference_path)
    prediction = volumes.read_mask(prediction_path, reference, reference_path)
    grid = Grid.of(reference)
    theirs, ours = (np.array(volumes.sitk.GetArrayViewFromImage(mask)) for mask in (reference, prediction))
    if binary:
        theirs, ours = np.minimum(theirs, 1), np.minimum(ours, 1)
    labels = sorted({*np.unique(theirs).tolist(), *np.unique(ours).tolist()} - {0})
    return {label: _of_label(ours == label, theirs == label, grid, names) for label in labels}


def _of_label(prediction, reference, grid, names):
    found = {}
    where = regions(reference, grid.direction) if reference.any() else {}
    for name in names:
        part = where.get(name, ...)
        if not reference[part].size:
            # of a single slice, which has no thirds
            part = ...
        found[name] = measure(prediction[part], reference[part], grid.spacing)
    return found


def compare_all(pairs, binary, names, track):
    """From each case's name to what `compare` returns; `InputErrors` of all that can't be compared."""
    cases, errors = {}, []
    for name, prediction, reference in track(pairs):
        try:
            cases[name] = compare(prediction, reference, binary, names)
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputErrors(errors)
    return cases


def fill_absent(several, names):
    """Gives every case every label that any case of any set has: where neither mask has it, they agree."""
    nothing = np.zeros((1, 1, 1), bool)
    agree = measure(nothing, nothing, (1, 1, 1))
    labels = sorted({label for cases in several for case in cases.values() for label in case}) or [1]
    return [
        {
            name: {label: case.get(label, dict.fromkeys(names, agree)) for label in labels}
            for name, case in cases.items()
        }
        for cases in several
    ]


def evaluate(names, pairs, binary=False, all_regions=False, observer=None):
    """Evaluations of several sets of predictions, with a bar on a terminal.

    Args:
        names: of the sets.
        pairs: for each a list of (name, prediction, reference).
        binary: whether all labels above 0 are one.
        all_regions: whether base and apex are measured too.
        observer: None, or what `score.read_observer` returned, which needs them.

    Returns:
        list of Evaluation, all with the same labels.

    Raises:
        InputErrors: of the first set in which masks can't be compared, all of them.
    """
    regions = REGIONS if all_regions or observer else (WHOLE,)
    bar = partial(tqdm, disable=not sys.stderr.isatty(), leave=False, unit="case")
    several = [
        compare_all(each, binary, regions, partial(bar, desc=name)) for name, each in zip(names, pairs, strict=True)
    ]
    return [
        Evaluation(name, cases, scores(cases, observer) if observer else {})
        for name, cases in zip(names, fill_absent(several, regions), strict=True)
    ]


def scores(cases, observer):
    """The challenge's score of each case and label.

    Args:
        cases: dict from name to measures with every region that the observer has.
        observer: what `score.read_observer` returned.

    Returns:
        dict from name to label to points, 100 at best.
    """
    return {
        name: {label: score(by_region, observer) for label, by_region in case.items()} for name, case in cases.items()
    }


def summarise(evaluation):
    """What is said of all cases together.

    Returns:
        dict from label to region to metric to a dict of `mean`, `standard_deviation`, `median` and `cases`,
        how many they are of: those where the metric is finite. Without any they are NaN. The score is in
        the region `whole`.
    """
    found = {}
    for label in evaluation.labels:
        found[label] = {
            region: {metric.name: statistics(evaluation.values(metric.name, label, region)) for metric in METRICS}
            for region in evaluation.regions
        }
        if evaluation.scores:
            found[label][WHOLE][SCORE] = statistics(evaluation.values(SCORE, label))
    return found


def statistics(values):
    """Mean, standard deviation (of a sample), median and number of the finite ones."""
    values = [value for value in values if math.isfinite(value)]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {
        "mean": float(np.mean(values)) if values else math.nan,
        "standard_deviation": deviation if values else math.nan,
        "median": float(np.median(values)) if values else math.nan,
        "cases": len(values),
    }
