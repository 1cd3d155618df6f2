import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vnet_fast.errors import InputError
from vnet_fast.evaluation.comparison import compare_pairs, wilcoxon
from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.metrics import METRICS


def evaluation(name, dice, distances=None):
    """Of cases 0, 1, … with these values; what is not given is zero."""
    cases = {}
    for index, value in enumerate(dice):
        measured = dict.fromkeys((metric.name for metric in METRICS), 0.0)
        measured |= {"dice": value, "hausdorff_95_mm": distances[index] if distances else 0.0}
        cases[f"case {index}"] = {1: {"whole": measured}}
    return Evaluation(name, cases)


def enumerated(differences):
    """The two-sided p value from all assignments of signs to the ranks, for differences without ties."""
    ranks = stats.rankdata(np.abs(differences))
    seen = ranks[np.array(differences) > 0].sum()
    sums = [sum(chosen) for n in range(len(ranks) + 1) for chosen in itertools.combinations(ranks, n)]
    extreme = min(seen, ranks.sum() - seen)
    return min(1.0, 2 * sum(total <= extreme for total in sums) / len(sums))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [3, 6, 10])
def test_p_value_by_enumeration(seed, count):
    differences = (np.random.default_rng(seed).normal(0.3, 1, count)).tolist()
    assert wilcoxon(differences) == pytest.approx(enumerated(differences), rel=1e-9)


def test_p_value_of_ties():
    """By enumeration too: the ranks of equal differences are their mean."""
    differences = [0.1, 0.1, 0.2, 0.3, -0.1, 0.4]
    assert wilcoxon(differences) == pytest.approx(enumerated(differences), rel=1e-9)


def test_p_value_where_nothing_differs():
    assert wilcoxon([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon([]))


def test_every_two_are_compared():
    several = [evaluation("a", [0.5, 0.6, 0.7]), evaluation("b", [0.6, 0.6, 0.9]), evaluation("c", [0.1, 0.2, 0.3])]
    found = [each for each in compare_pairs(several) if each.metric == "dice"]
    assert [(each.first, each.second) for each in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(found[0].differences.values()) == pytest.approx([0.1, 0.0, 0.2])
    assert found[0].median == pytest.approx(0.1)


def test_infinite_distances_are_left_out():
    pair = [evaluation("a", [0.5] * 3, [1.0, math.inf, 2.0]), evaluation("b", [0.5] * 3, [3.0, 1.0, math.inf])]
    found = next(each for each in compare_pairs(pair) if each.metric == "hausdorff_95_mm")
    assert found.differences == {"case 0": 2.0}


def test_other_cases_are_refused():
    with pytest.raises(InputError, match="b: has no prediction of case 2, which a has"):
        compare_pairs([evaluation("a", [0.1] * 3), evaluation("b", [0.1] * 2)])
    with pytest.raises(InputError, match="a: has no prediction of case 2, which b has"):
        compare_pairs([evaluation("a", [0.1] * 2), evaluation("b", [0.1] * 3)])
