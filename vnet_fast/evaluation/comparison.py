"""Compares sets of predictions of the same cases, case by case."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.evaluation.evaluation import WHOLE, Evaluation
from vnet_fast.evaluation.metrics import METRICS

# one metric of each kind
COMPARED = ("dice", "hausdorff_95_mm", "average_boundary_distance_mm")
TITLES = {metric.name: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Comparison:
    """One metric of one label in two sets of predictions.

    Args:
        first, second: names of the sets.
        label: 1 and up.
        metric: its name.
        differences: dict from the case's name to second - first, for cases where both values are finite.
        p_value: of the two-sided paired Wilcoxon signed-rank test, not corrected for multiple tests; 1 if no case
            differs, NaN without cases.
        title: what the label is called in a text.
    """

    first: str
    second: str
    label: int
    metric: str
    differences: dict[str, float]
    p_value: float
    title: str

    @property
    def median(self) -> float:
        """The median difference; NaN without cases."""
        return float(np.median(list(self.differences.values()))) if self.differences else math.nan

    @property
    def higher(self) -> int:
        """The number of cases where the second set's value is higher."""
        return sum(difference > 0 for difference in self.differences.values())

    @property
    def lower(self) -> int:
        """The number of cases where the second set's value is lower."""
        return sum(difference < 0 for difference in self.differences.values())


def compare_pairs(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """Compares every two evaluations, label by label, in the region `whole`.

    Args:
        evaluations: of the same cases and labels.

    Raises:
        InputError: if one evaluation has a case that another lacks.
    """
    check_same_cases({evaluation.name: list(evaluation.cases) for evaluation in evaluations})
    return [
        _compare(first, second, label, metric)
        for first, second in itertools.combinations(evaluations, 2)
        for label in first.labels
        for metric in COMPARED
    ]


def check_same_cases(sets: Mapping[str, Sequence[str]]) -> None:
    """Checks that all sets of predictions have the same cases.

    Args:
        sets: from the name of each set to the names of its cases.

    Raises:
        InputError: if one set has a case that another lacks.
    """
    first, *others = sets
    for other in others:
        for complete, incomplete in ((first, other), (other, first)):
            missing = [name for name in sets[complete] if name not in sets[incomplete]]
            if missing:
                cause = f"has no prediction of {', '.join(missing[:5])}, which {complete} has"
                raise InputError(incomplete, cause, "Predict the same cases for all, so that they can be compared")


def _compare(first: Evaluation, second: Evaluation, label: int, metric: str) -> Comparison:
    differences = {}
    for name in first.cases:
        before, after = (evaluation.cases[name][label][WHOLE][metric] for evaluation in (first, second))
        if math.isfinite(before) and math.isfinite(after):
            differences[name] = after - before
    p_value = wilcoxon(list(differences.values()))
    return Comparison(first.name, second.name, label, metric, differences, p_value, first.title(label))


def wilcoxon(differences: Sequence[float]) -> float:
    """Computes the p value of the two-sided Wilcoxon signed-rank test.

    The null hypothesis is that the differences are symmetric about zero.

    Args:
        differences: finite numbers; zeros are left out, as in Wilcoxon's paper.

    Returns:
        0 to 1, exact or by the normal approximation, as SciPy chooses by the number of values and ties; 1 if all
        differences are zero, NaN if there are none.

    Source:
        Wilcoxon, Biometrics Bulletin 1, 1945, computed by SciPy.
    """
    # imported here because it takes most of a second
    from scipy import stats

    if not differences:
        return math.nan
    # with zeros among them SciPy would not compute the exact distribution
    others = [difference for difference in differences if difference]
    return float(stats.wilcoxon(others).pvalue) if others else 1.0
