"""The observers in these tests are invented."""

import math
import os

import numpy as np
import pytest

from vnet_fast.errors import InputError
from vnet_fast.evaluation.metrics import METRICS, measure
from vnet_fast.evaluation.score import points, read_observer, score

OBSERVER = """
# invented
[dice]
whole = 0.5
base = 0.25

[average_boundary_distance_mm]
whole = 2
apex = 4.0
"""


@pytest.fixture
def written(tmp_path):
    """Writes a file of an observer and returns its path."""

    def write(content):
        path = tmp_path / "observer.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("encoded", [OBSERVER.encode(), OBSERVER.encode("utf-8-sig"), OBSERVER.replace("\n", "\r\n")],
                         ids=["plain", "byte order mark", "Windows"])  # fmt: skip
def test_reads_an_observer(written, encoded):
    assert read_observer(written(encoded)) == {
        "dice": {"whole": 0.5, "base": 0.25},
        "average_boundary_distance_mm": {"whole": 2.0, "apex": 4.0},
    }


@pytest.mark.parametrize("name", [metric.name for metric in METRICS if metric.better in ("high", "low")])
def test_every_metric_with_a_better_side_can_be_scored(written, name):
    assert read_observer(written(f"{name}.apex = 0.5")) == {name: {"apex": 0.5}}
    assert points(name, 0.5, 0.5) == pytest.approx(85)


WRONG = {
    "not TOML": ("dice: 0.5", "not TOML ("),
    "not text": (b"\xff\xfe\x00", "not TOML ("),
    "too many digits": ("[dice]\nwhole = " + "9" * 5000, "not TOML ("),
    "nested without end": ("a = " + "[" * 20000, "not TOML ("),
    "empty": ("# nothing", "has no metrics. Write a table"),
    "no regions": ("[dice]", "dice has no regions. Write a table"),
    "no table": ("dice = 0.5", "dice has no regions. Write a table"),
    "unknown metric": ("[dce]\nwhole = 0.5", "'dce' is not a metric that can be scored. Choose from dice, jaccard, "),
    "volume": ("[prediction_ml]\nwhole = 5", "'prediction_ml' is not a metric that can be scored. Choose from "),
    "signed": (
        "[relative_volume_difference_percent]\nwhole = 5",
        "'relative_volume_difference_percent' is not a metric that can be scored",
    ),
    "broken name": ('["a\\nb"]\nwhole = 0.5', r"'a\nb' is not a metric that can be scored"),
    "unknown region": ("[dice]\nall = 0.5", "'all' of dice is not a region. Choose from whole, base, apex"),
    "text": ('[dice]\nbase = "0.5"', "dice of base is not a finite number"),
    "truth": ("[hausdorff_mm]\nbase = true", "hausdorff_mm of base is not a finite number"),
    "list": ("[dice]\nbase = [0.5]", "dice of base is not a finite number"),
    "nan": ("[dice]\nbase = nan", "dice of base is not a finite number"),
    "infinite": ("[hausdorff_mm]\nbase = inf", "hausdorff_mm of base is not a finite number"),
    "beyond float": ("[hausdorff_mm]\nbase = 1" + "0" * 400, "hausdorff_mm of base is not a finite number"),
    "perfect overlap": ("[dice]\nbase = 1", "dice of base is 1, which is perfect"),
    "perfect distance": ("[hausdorff_mm]\nbase = -0.0", "hausdorff_mm of base is -0, which is perfect"),
    "overlap above 1": ("[dice]\nbase = 50", "dice of base is 50, not from 0 to 1"),
    "overlap below 0": ("[jaccard]\nbase = -0.5", "jaccard of base is -0.5, not from 0 to 1"),
    "negative distance": ("[hausdorff_95_mm]\napex = -2", "hausdorff_95_mm of apex is -2, not above 0"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files(written, content, message):
    path = written(content)
    with pytest.raises(InputError) as raised:
        read_observer(path)
    text = str(raised.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert len(text.splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path, written):
    with pytest.raises(InputError, match=r"none\.toml: no such file\. Check the path"):
        read_observer(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r": can't be read \("):
        read_observer(tmp_path)
    path = written(OBSERVER)
    path.chmod(0)
    # the superuser can read any file
    if os.access(path, os.R_OK):
        return
    with pytest.raises(InputError, match=r": can't be read \("):
        read_observer(path)


@pytest.mark.parametrize(
    ("metric", "value", "observer", "expected"),
    [
        ("dice", 1.0, 0.5, 100),
        ("dice", 0.75, 0.5, 92.5),
        ("dice", 0.5, 0.5, 85),
        ("dice", 0.0, 0.5, 70),
        ("dice", 0.0, 0.9, 0),
        ("hausdorff_mm", 0.0, 10, 100),
        ("hausdorff_mm", 10.0, 10, 85),
        ("hausdorff_mm", 60.0, 10, 10),
        ("hausdorff_mm", 70.0, 10, 0),
        ("hausdorff_mm", math.inf, 10, 0),
        ("hausdorff_mm", 0.0, 5e-324, 100),
        ("hausdorff_mm", 1.0, 5e-324, 0),
        ("absolute_relative_volume_difference_percent", 4.0, 2, 70),
    ],
)
def test_points(metric, value, observer, expected):
    assert points(metric, value, observer) == pytest.approx(expected, abs=1e-12)


def test_points_of_nothing_are_nothing():
    assert math.isnan(points("dice", math.nan, 0.5))


@pytest.mark.parametrize("metric", ["reference_ml", "relative_volume_difference_percent", "DICE"])
def test_points_of_what_cannot_be_scored(metric):
    with pytest.raises(ValueError, match=f"metric_name must be one of dice, .*; got '{metric}'"):
        points(metric, 0.5, 0.5)


def test_points_by_a_perfect_observer():
    with pytest.raises(ValueError, match="observer_value must differ from 1, which is perfect in dice"):
        points("dice", 0.5, 1.0)


def test_score_is_the_mean_over_what_the_observer_has(written):
    observer = read_observer(written(OBSERVER))
    measured = {
        "whole": {"dice": 0.5, "average_boundary_distance_mm": 4.0, "jaccard": 0.0},
        "base": {"dice": 1.0, "average_boundary_distance_mm": math.inf},
        "apex": {"dice": 0.0, "average_boundary_distance_mm": math.inf},
    }
    # 85 and 100 points for Dice, 70 and 0 for the distance
    assert score(measured, observer) == pytest.approx((85 + 100 + 70 + 0) / 4)


def test_score_of_what_measure_returns(written):
    observer = read_observer(written(OBSERVER))
    mask = np.ones((3, 3, 3), bool)
    perfect, nothing = measure(mask, mask, (1, 1, 2)), measure(mask & False, mask, (1, 1, 2))
    assert score(dict.fromkeys(("whole", "base", "apex"), perfect), observer) == 100
    # Dice 0 has 70 points for an observer of 0.5, and 80 for one of 0.25
    assert score(dict.fromkeys(("whole", "base", "apex"), nothing), observer) == pytest.approx((70 + 80) / 4)


@pytest.mark.parametrize(
    "measured", [{"whole": {"dice": 0.5}}, {"base": {"dice": 0.5}, "whole": {"jaccard": 0.5}}], ids=["region", "metric"]
)
def test_score_of_what_was_not_measured(measured):
    observer = {"dice": {"whole": 0.5, "base": 0.5}}
    with pytest.raises(ValueError, match=r"measured must have dice of (whole|base), which the observer has"):
        score(measured, observer)


def test_score_without_an_observer():
    with pytest.raises(ValueError, match="observer must have at least one value"):
        score({"whole": {"dice": 0.5}}, {})
