"""What tables and texts say of classes and of values that are not defined."""

import math

import pytest

from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.summary import statistics
from vnet_fast.evaluation.tables import class_cell, explain_undefined


def make_evaluation(**arguments):
    values = dict.fromkeys((metric.name for metric in METRICS), 0.5)
    return Evaluation("x", {"A": {label: {"whole": values} for label in (1, 2, 3)}}, **arguments)


def test_classes_of_one_name_are_told_apart():
    evaluation = make_evaluation(class_names={1: "lesion", 2: "lesion", 3: "organ"})
    assert [class_cell(evaluation, label) for label in (1, 2, 3)] == ["lesion (1)", "lesion (2)", "organ"]
    assert [evaluation.title(label) for label in (1, 2, 3)] == ["lesion (1)", "lesion (2)", "organ"]
    assert class_cell(make_evaluation(), 1) == "1"


def test_a_predicted_label_that_is_ignored_is_not_said_to_be_in_no_reference():
    stray, ignored = explain_undefined(make_evaluation(strays={5: 1, 7: 1}, ignored=7))
    assert stray == "class 5: predicted in 1 of 1 cases, but in no reference and not declared; not measured"
    assert ignored == "class 7: predicted in 1 of 1 cases, but ignored in the references; not measured"


def test_a_single_case_has_no_standard_deviation():
    assert math.isnan(statistics([0.5, math.inf])["standard_deviation"])
    assert statistics([0.5, 0.7])["standard_deviation"] == pytest.approx(0.2 / math.sqrt(2))
