"""The score of PROMISE12: points on a linear scale, with 100 for a perfect prediction and 85 for a second observer.

The user provides the second observer's mean values in a TOML file with a table for each metric that counts:

    [metric]
    whole = number
    base = number
    apex = number
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vnet_fast.errors import InputError
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.regions import REGIONS
from vnet_fast.stored import open_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]  # installed with Python 3.10 only

# the challenge's values
PERFECT_POINTS = 100
OBSERVER_POINTS = 85

# the perfect value of each metric that can be scored
PERFECT = {
    metric.name: metric.perfect for metric in METRICS if metric.better in ("high", "low") and metric.perfect is not None
}
HIGHER_IS_BETTER = {metric.name for metric in METRICS if metric.better == "high"}
TABLE_HINT = "Write a table [metric] with whole, base or apex = the observer's mean for each metric that counts"
VALUE_HINT = "Write the second observer's mean"

# from metric to region to the observer's mean
Observer = dict[str, dict[str, float]]


def read_observer(path: str | Path) -> Observer:
    """Reads a second observer's mean values.

    Args:
        path: of a TOML file with at least one table, named after a metric, with numbers for one or more regions.

    Returns:
        dict from metric to region to value.

    Raises:
        InputError: if the file can't be read, or a value can't be used for a score.
    """
    content = _read_toml(path)
    observer = {metric: _check_table(path, metric, table) for metric, table in content.items()}
    if not observer:
        raise InputError(path, "has no metrics", TABLE_HINT)
    return observer


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        with open_regular(path, "r", encoding="utf-8-sig") as file:
            return tomllib.loads(file.read())
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    # text that is not UTF-8 and numbers with too many digits are a ValueError too
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not TOML ({error})", TABLE_HINT) from None


def _check_table(path: str | Path, metric: str, table: object) -> dict[str, float]:
    if metric not in PERFECT:
        raise InputError(path, f"{metric!r} is not a metric that can be scored", f"Choose from {', '.join(PERFECT)}")
    if not isinstance(table, dict) or not table:
        raise InputError(path, f"{metric} has no regions", TABLE_HINT)
    return {region: _check_value(path, metric, region, value) for region, value in table.items()}


def _check_value(path: str | Path, metric: str, region: str, value: object) -> float:
    if region not in REGIONS:
        raise InputError(path, f"{region!r} of {metric} is not a region", f"Choose from {', '.join(REGIONS)}")
    subject = f"{metric} of {region}"
    number = _to_finite(value)
    if number is None:
        raise InputError(path, f"{subject} is not a finite number", VALUE_HINT)
    if number == PERFECT[metric]:
        cause = f"{subject} is {number:g}, which is perfect, so that it can't define a scale"
        raise InputError(path, cause, "Delete it, or write a second observer's mean")
    if number < 0 or (metric in HIGHER_IS_BETTER and number > PERFECT[metric]):
        allowed = "from 0 to 1" if metric in HIGHER_IS_BETTER else "above 0"
        raise InputError(path, f"{subject} is {number:g}, not {allowed}", VALUE_HINT)
    return number


def _to_finite(value: object) -> float | None:
    """Converts a finite number to a float; returns None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def points(metric_name: str, value: float, observer_value: float) -> float:
    """Computes the points of one metric.

    They are 100 for a perfect value and 85 for the observer's value, linear in the metric, and at least 0.

    Args:
        metric_name: a metric that can be scored, which volumes and the signed difference can't.
        value: the prediction's value, in the metric's unit.
        observer_value: the observer's value, in the metric's unit, which must not be perfect.

    Returns:
        0 to 100; 0 for an infinite value, NaN for NaN.

    Raises:
        ValueError: if the metric can't be scored, or the observer's value is perfect.
    """
    if metric_name not in PERFECT:
        raise ValueError(f"metric_name must be one of {', '.join(PERFECT)}; got {metric_name!r}")
    perfect = PERFECT[metric_name]
    if observer_value == perfect:
        raise ValueError(f"observer_value must differ from {perfect:g}, which is perfect in {metric_name}")
    lost = (PERFECT_POINTS - OBSERVER_POINTS) * (abs(value - perfect) / abs(observer_value - perfect))
    # max returns its first argument if that is NaN
    return max(PERFECT_POINTS - lost, 0.0)


def score(measured: Mapping[str, Mapping[str, float]], observer: Observer) -> float:
    """Computes the mean of the points of all metrics and regions in the observer's file.

    Args:
        measured: from region to metric to value.
        observer: from metric to region to value, as `read_observer` returns it.

    Returns:
        0 to 100.

    Raises:
        ValueError: if a metric or region of the observer was not measured, or the observer has no values.
    """
    all_points = []
    for metric, by_region in observer.items():
        for region, observer_value in by_region.items():
            if metric not in measured.get(region, {}):
                raise ValueError(f"measured must have {metric} of {region}, which the observer has")
            all_points.append(points(metric, measured[region][metric], observer_value))
    if not all_points:
        raise ValueError("observer must have at least one value; got none")
    return sum(all_points) / len(all_points)
