"""Summarises the cases of an evaluation: mean, standard deviation and median of each metric."""

import math
from collections.abc import Iterable

import numpy as np

from vnet_fast.evaluation.evaluation import SCORE, WHOLE, Evaluation
from vnet_fast.evaluation.metrics import METRICS

# from label to region to metric to `statistics`
Summary = dict[int, dict[str, dict[str, dict[str, float]]]]


def summarise(evaluation: Evaluation) -> Summary:
    """Summarises the cases of an evaluation.

    Returns:
        dict from label to region to metric to its `statistics`. The score is in the region `whole`.
    """
    summary: Summary = {}
    for label in evaluation.labels:
        summary[label] = {
            region: {metric.name: statistics(evaluation.values(metric.name, label, region)) for metric in METRICS}
            for region in evaluation.regions
        }
        if evaluation.scores:
            summary[label][WHOLE][SCORE] = statistics(evaluation.values(SCORE, label))
    return summary


def statistics(values: Iterable[float]) -> dict[str, float]:
    """Computes statistics of the finite values.

    Returns:
        dict with `mean`, `standard_deviation` (of a sample; NaN with fewer than two values) and `median`, NaN without
        finite values, and `cases`, the number of finite values.
    """
    finite = [value for value in values if math.isfinite(value)]
    return {
        "mean": float(np.mean(finite)) if finite else math.nan,
        "standard_deviation": float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan,
        "median": float(np.median(finite)) if finite else math.nan,
        "cases": len(finite),
    }
