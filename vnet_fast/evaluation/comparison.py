"""Two sets of predictions of the same cases, compared case by case."""

import importlib.util
import itertools
import math
from dataclasses import dataclass

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.evaluation.evaluation import WHOLE
from vnet_fast.evaluation.metrics import METRICS

# the metrics that tell how good a prediction is, without those that say the same again
COMPARED = ("dice", "hausdorff_95_mm", "average_boundary_distance_mm")
TITLES = {metric.name: metric.title for metric in METRICS}


@dataclass(frozen=True)
class Comparison:
    """One metric of one label, of two sets of predictions.

    Args:
        first, second: their names.
        label: 1 and up.
        metric: its name.
        differences: dict from the case's name to second - first, where both are finite.
        p_value: of the two-sided paired Wilcoxon signed-rank test, not corrected for other tests; 1 where
            no case differs, NaN without any case.
    """

    first: str
    second: str
    label: int
    metric: str
    differences: dict
    p_value: float

    @property
    def median(self):
        """The median difference."""
        return float(np.median(list(self.differences.values()))) if self.differences else math.nan


def require_scipy(subject):
    """An `InputError` of `subject` where the test's library is not installed."""
    if importlib.util.find_spec("scipy") is None:
        raise InputError(
            subject, "SciPy, which has the paired test, is not installed", "pip install 'vnet_fast[report]'"
        )


def compare_pairs(evaluations):
    """Every two of the evaluations, label by label, in the whole of each structure.

    Args:
        evaluations: list of `evaluation.Evaluation` of the same cases and labels.

    Returns:
        list of Comparison.

    Raises:
        InputError: if a case is in one and not in another.
    """
    check_same_cases({each.name: each.cases for each in evaluations})
    found = []
    for first, second in itertools.combinations(evaluations, 2):
        found += [_compared(first, second, label, metric) for label in first.labels for metric in COMPARED]
    return found


def check_same_cases(sets):
    """Makes sure that sets of predictions are of the same cases.

    Args:
        sets: dict from the name of each to the names of its cases.
    """
    first, *others = sets
    for other in others:
        for a, b in ((first, other), (other, first)):
            missing = [name for name in sets[a] if name not in sets[b]]
            if missing:
                cause = f"has no prediction of {', '.join(missing[:5])}, which {a} has"
                raise InputError(b, cause, "Predict the same cases, to be compared one by one")


def _compared(first, second, label, metric):
    differences = {}
    for name in first.cases:
        a, b = (evaluation.cases[name][label][WHOLE][metric] for evaluation in (first, second))
        if math.isfinite(a) and math.isfinite(b):
            differences[name] = b - a
    return Comparison(first.name, second.name, label, metric, differences, wilcoxon(list(differences.values())))


def wilcoxon(differences):
    """The p value of the two-sided Wilcoxon signed-rank test that differences are symmetric about zero.

    Args:
        differences: list of finite numbers; those that are zero are left out, as Wilcoxon did.

    Returns:
        0 to 1, exact or by the normal approximation, as SciPy chooses by number and ties; 1 if all are zero,
        NaN if there are none.

    Source:
        Wilcoxon 1945, by SciPy.
    """
    from scipy import stats

    if not differences:
        return math.nan
    return float(stats.wilcoxon(differences).pvalue) if any(differences) else 1.0
