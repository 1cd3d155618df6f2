import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vnet_fast.errors import InputError
from vnet_fast.evaluation.comparison import compare_pairs, wilcoxon
from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.tables import text


def make_evaluation(name, dice, distances=None):
    """An Evaluation of cases 0, 1, … with these values; all other values are zero."""
    cases = {}
    for index, value in enumerate(dice):
        measured = dict.fromkeys((metric.name for metric in METRICS), 0.0)
        measured |= {"dice": value, "hausdorff_95_mm": distances[index] if distances else 0.0}
        cases[f"case {index}"] = {1: {"whole": measured}}
    return Evaluation(name, cases)


def enumerate_p_value(differences):
    """The two-sided p value, from all assignments of signs to the ranks."""
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[np.array(differences) > 0].sum()
    sums = [sum(positive) for n in range(len(ranks) + 1) for positive in itertools.combinations(ranks, n)]
    extreme = min(observed, ranks.sum() - observed)
    return min(1.0, 2 * sum(total <= extreme for total in sums) / len(sums))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [3, 6, 10])
def test_p_value_by_enumeration(seed, count):
    differences = (np.random.default_rng(seed).normal(0.3, 1, count)).tolist()
    assert wilcoxon(differences) == pytest.approx(enumerate_p_value(differences), rel=1e-9)


def test_p_value_of_ties():
    """Equal differences have the mean of their ranks."""
    differences = [0.1, 0.1, 0.2, 0.3, -0.1, 0.4]
    assert wilcoxon(differences) == pytest.approx(enumerate_p_value(differences), rel=1e-9)


def test_p_value_without_the_cases_that_do_not_differ():
    differences = [0.01 * (number + 1) for number in range(14)]
    assert wilcoxon([0.0, *differences, 0.0]) == wilcoxon(differences) == pytest.approx(2 / 2**14)


def test_p_value_where_nothing_differs():
    assert wilcoxon([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon([]))


def test_every_two_are_compared():
    several = [
        make_evaluation("a", [0.5, 0.6, 0.7]),
        make_evaluation("b", [0.6, 0.6, 0.9]),
        make_evaluation("c", [0.1, 0.2, 0.3]),
    ]
    comparisons = [comparison for comparison in compare_pairs(several) if comparison.metric == "dice"]
    assert [(comparison.first, comparison.second) for comparison in comparisons] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(comparisons[0].differences.values()) == pytest.approx([0.1, 0.0, 0.2])
    assert comparisons[0].median == pytest.approx(0.1)
    assert (comparisons[0].higher, comparisons[0].lower) == (2, 0)


def test_infinite_distances_are_left_out():
    pair = [
        make_evaluation("a", [0.5] * 3, [1.0, math.inf, 2.0]),
        make_evaluation("b", [0.5] * 3, [3.0, 1.0, math.inf]),
    ]
    comparison = next(c for c in compare_pairs(pair) if c.metric == "hausdorff_95_mm")
    assert comparison.differences == {"case 0": 2.0}


def test_other_cases_are_refused():
    with pytest.raises(InputError, match="b: has no prediction of case 2, which a has"):
        compare_pairs([make_evaluation("a", [0.1] * 3), make_evaluation("b", [0.1] * 2)])
    with pytest.raises(InputError, match="a: has no prediction of case 2, which b has"):
        compare_pairs([make_evaluation("a", [0.1] * 2), make_evaluation("b", [0.1] * 3)])


def test_differences_have_the_units_and_digits_of_the_tables():
    comparisons = compare_pairs([make_evaluation("a", [0.5], [1.0]), make_evaluation("b", [0.75], [2.123456])])
    dice, distance, _ = text([], comparisons)
    assert "Dice: median difference +0.2500 (higher in 1, lower in 0 of 1 cases)" in dice
    assert "95 % Hausdorff distance: median difference +1.12 mm (higher in 1" in distance
