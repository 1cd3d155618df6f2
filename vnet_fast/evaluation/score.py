"""The score of PROMISE12: metrics as points on a line through a perfect prediction and a second observer.

What the observer reaches is for the user to say, in a TOML file with a table for each metric that counts:

    [metric]
    whole = number
    base = number
    apex = number
"""

import math

from vnet_fast.errors import InputError
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.regions import REGIONS

try:
    import tomllib
except ImportError:
    # Python 3.10
    import tomli as tomllib

# the challenge's
PERFECT_POINTS = 100
OBSERVER_POINTS = 85

SCORED = {metric.name: metric for metric in METRICS if metric.better in ("high", "low")}
FORM = "Write a table [metric] with whole, base or apex = the observer's mean for each metric that counts"


def read_observer(path):
    """A second observer's mean values.

    Args:
        path: of a TOML file with a table for each metric, in it a number for each region; any of them, but one
            at least.

    Returns:
        dict from metric to region to value.

    Raises:
        InputError: if it can't be read, or a metric can't be scored by it.
    """
    content = _read_toml(path)
    observer = {metric: _read_metric(path, metric, table) for metric, table in content.items()}
    if not observer:
        raise InputError(path, "has no metrics", FORM)
    return observer


def _read_toml(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return tomllib.loads(file.read())
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    # text that is not UTF-8, and numbers of too many digits, are a ValueError too
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not TOML ({error})", FORM) from None


def _read_metric(path, metric, table):
    if metric not in SCORED:
        raise InputError(path, f"{metric!r} is no metric that can be scored", f"Choose from {', '.join(SCORED)}")
    if not isinstance(table, dict) or not table:
        raise InputError(path, f"{metric} has no regions", FORM)
    return {region: _read_value(path, SCORED[metric], region, value) for region, value in table.items()}


def _read_value(path, metric, region, value):
    if region not in REGIONS:
        raise InputError(path, f"{region!r} of {metric.name} is no region", f"Choose from {', '.join(REGIONS)}")
    subject = f"{metric.name} of {region}"
    number = _finite(value)
    if number is None:
        raise InputError(path, f"{subject} is no finite number", "Write the second observer's mean")
    if number == metric.perfect:
        cause = f"{subject} is {number:g}, which is perfect, and leaves nothing to measure others by"
        raise InputError(path, cause, "Leave it out, or write a second observer's mean")
    if number < 0 or (metric.better == "high" and number > metric.perfect):
        span = "from 0 to 1" if metric.better == "high" else "above 0"
        raise InputError(path, f"{subject} is {number:g}, not {span}", "Write the second observer's mean")
    return number


def _finite(value):
    """A number as a float; None if it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def points(metric_name, value, observer_value):
    """The points of one metric: 100 if perfect, 85 at the observer's value, linear between and beyond, never
    below 0.

    Args:
        metric_name: of a metric that can be scored: neither a volume, nor the signed difference.
        value, observer_value: in the metric's unit; the observer's is not perfect.

    Returns:
        0 to 100; 0 for an infinite value, NaN for NaN.

    Raises:
        ValueError: if the metric can't be scored, or the observer's value is perfect.
    """
    if metric_name not in SCORED:
        raise ValueError(f"metric_name must be one of {', '.join(SCORED)}; got {metric_name!r}")
    perfect = SCORED[metric_name].perfect
    if observer_value == perfect:
        raise ValueError(f"observer_value must differ from {perfect:g}, which is perfect in {metric_name}")
    lost = (PERFECT_POINTS - OBSERVER_POINTS) * (abs(value - perfect) / abs(observer_value - perfect))
    # in this order, so that NaN stays
    return max(PERFECT_POINTS - lost, 0.0)


def score(measured, observer):
    """The mean of the points of all metrics and regions that the observer has.

    Args:
        measured: dict from region to metric to value.
        observer: dict from metric to region to value, as `read_observer` returns it.

    Returns:
        0 to 100.

    Raises:
        ValueError: if a region or metric of the observer's was not measured.
    """
    found = []
    for metric, by_region in observer.items():
        for region, observer_value in by_region.items():
            if metric not in measured.get(region, {}):
                raise ValueError(f"measured must have {metric} of {region}, which the observer has")
            found.append(points(metric, measured[region][metric], observer_value))
    if not found:
        raise ValueError("observer must have at least one value; got none")
    return sum(found) / len(found)
