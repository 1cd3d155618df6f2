"""Writes evaluations and comparisons as text, JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from vnet_fast.averages import defined_mean
from vnet_fast.evaluation.calibration import BINS, Calibration, pooled
from vnet_fast.evaluation.comparison import TITLES, Comparison
from vnet_fast.evaluation.evaluation import SCORE, WHOLE, Evaluation
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.probabilities import MARGIN
from vnet_fast.evaluation.summary import summarise
from vnet_fast.files import plain
from vnet_fast.text_table import Alignment, csv_name, format_table, printable


class Column(NamedTuple):
    """A column of a table: a metric, its heading, and the number of decimals."""

    metric: str
    heading: str
    digits: int


COLUMNS = (
    Column("dice", "Dice", 4),
    Column("hausdorff_mm", "HD mm", 2),
    Column("hausdorff_95_mm", "HD95 mm", 2),
    Column("average_boundary_distance_mm", "ABD mm", 2),
    Column("relative_volume_difference_percent", "RVD %", 1),
)
UNITS = {metric.name: metric.unit for metric in METRICS}
# what a row is about
SUBJECT = ("predictions", "case", "class", "class_name", "region")
SCORE_COLUMN = Column(SCORE, "score", 1)
CALIBRATION = "expected_calibration_error"


def text(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison] = ()) -> list[str]:
    """The lines that are printed: a table for each evaluation, and a line for each comparison."""
    lines = []
    for evaluation in evaluations:
        lines += [f"{evaluation.name}:"] if len(evaluations) > 1 else []
        lines += _format_evaluation(evaluation)
    return lines + [_format_comparison(comparison) for comparison in comparisons]


def columns(evaluation: Evaluation) -> list[Column]:
    """The columns of an evaluation's table."""
    return [*COLUMNS, SCORE_COLUMN] if evaluation.scores else list(COLUMNS)


def _format_evaluation(evaluation: Evaluation) -> list[str]:
    shown, summary = columns(evaluation), summarise(evaluation)
    groups = [(label, region) for label in evaluation.labels for region in evaluation.regions]
    rows = [["case", "class", "region", *(column.heading for column in shown)]]
    for name in evaluation.cases:
        for label, region in groups:
            values = [number(case_value(evaluation, name, label, region, c.metric), c.digits) for c in shown]
            rows.append([printable(name), class_cell(evaluation, label), region, *values])
    means = partial(mean_and_deviation, total=len(evaluation.cases))
    for heading, format_cell in (("mean ± SD", means), ("median", _format_median)):
        for label, region in groups:
            cells = [format_cell(summary[label][region].get(column.metric), column.digits) for column in shown]
            rows.append([heading, class_cell(evaluation, label), region, *cells])
    align: list[Alignment] = ["left", "left" if evaluation.class_names else "right", "left"]
    table = format_table(rows, align + ["right"] * len(shown))
    return table + explain_undefined(evaluation) + describe_calibration(evaluation)


def class_cell(evaluation: Evaluation, label: int) -> str:
    """A table's cell under the heading `class`: the name of a class, or its number."""
    return printable(evaluation.title(label) if evaluation.class_names.get(label) else str(label))


def case_value(evaluation: Evaluation, name: str, label: int, region: str, metric: str) -> float | None:
    """One value of a case; None for the score and the calibration of a region, which are of all regions together."""
    if metric == CALIBRATION:
        measured = evaluation.calibration.get(name, {}).get(label)
        return measured.error if measured and region == WHOLE else None
    if metric != SCORE:
        return evaluation.cases[name][label][region][metric]
    return evaluation.scores[name][label] if region == WHOLE else None


def number(value: float | None, digits: int) -> str:
    """A table's cell: a number, a dash if it is not finite, such as a distance to an empty mask, or "" for None."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def mean_and_deviation(statistics: Mapping[str, float] | None, digits: int, total: int | None = None) -> str:
    """A table's cell with mean and standard deviation.

    Args:
        statistics: what `summary.statistics` returned, or None for an empty cell.
        digits: number of decimals.
        total: None, or the number of all cases; if the statistics have fewer, the cell says so.
    """
    if statistics is None:
        return ""
    count = f" (of {statistics['cases']})" if total is not None and statistics["cases"] < total else ""
    # a single case has no deviation
    deviation = f" ± {number(statistics['standard_deviation'], digits)}" if statistics["cases"] > 1 else ""
    return f"{number(statistics['mean'], digits)}{deviation}{count}"


def _format_median(statistics: Mapping[str, float] | None, digits: int) -> str:
    return "" if statistics is None else number(statistics["median"], digits)


def explain_undefined(evaluation: Evaluation) -> list[str]:
    """Lines that say which values are not defined in all cases, and which predicted labels are not measured."""
    lines, total = [], len(evaluation.cases)
    for label in evaluation.labels:
        title, absent = printable(evaluation.title(label)), evaluation.absent(label)
        if absent:
            lines.append(f"{title}: in neither mask of {absent} of {total} cases, which do not count")
        for region in evaluation.regions:
            distances = evaluation.values("hausdorff_mm", label, region)
            infinite, rated = sum(map(math.isinf, distances)), sum(not math.isnan(value) for value in distances)
            if infinite:
                lines.append(
                    f"{title}, {region}: distances of {rated - infinite} of {rated} cases; "
                    "in the others one mask is empty"
                )
    for label, count in evaluation.strays.items():
        reason = "ignored in the references" if label == evaluation.ignored else "in no reference and not declared"
        lines.append(f"class {label}: predicted in {count} of {total} cases, but {reason}; not measured")
    return lines


def describe_calibration(evaluation: Evaluation) -> list[str]:
    """A line with the expected calibration error of each class over all cases, if it was measured."""
    if not evaluation.calibration:
        return []
    found = {label: pooled(evaluation.calibration.values(), label) for label in evaluation.labels}
    errors = ", ".join(
        f"{printable(evaluation.title(label))} {number(measured.error if measured else None, 4) or '-'}"
        for label, measured in found.items()
    )
    return [f"expected calibration error: {errors} ({BINS} bins; voxels of a box with a margin of {MARGIN:g} mm)"]


def _calibration(evaluation: Evaluation) -> dict[int, dict[str, Any]]:
    """What the JSON file has of the calibration of each class, over all cases and of each."""
    content = {}
    for label in evaluation.labels:
        measured = pooled(evaluation.calibration.values(), label)
        if measured:
            errors = {name: case[label].error for name, case in evaluation.calibration.items() if label in case}
            content[label] = {CALIBRATION: measured.error, "bins": _bins(measured), "cases": errors}
    return content


def _bins(measured: Calibration) -> list[dict[str, float]]:
    return [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "voxels": int(voxels),
            "mean_probability": mean,
            "share": share,
        }
        for number, (voxels, mean, share) in enumerate(
            zip(measured.voxels, measured.mean_probability, measured.share, strict=True)
        )
    ]


def _format_comparison(comparison: Comparison) -> str:
    subject = f"{comparison.second} - {comparison.first}, {comparison.title}, {TITLES[comparison.metric]}"
    subject = printable(subject)
    if not comparison.differences:
        return f"{subject}: not defined in both for any case"
    median, cases = format_difference(comparison, sign="+"), len(comparison.differences)
    return (
        f"{subject}: median difference {median} (higher in {comparison.higher}, lower in {comparison.lower} of {cases} "
        f"cases), paired Wilcoxon p = {comparison.p_value:.2g}"
    )


def format_difference(comparison: Comparison, sign: str = "") -> str:
    """The median difference with its unit and the digits of the tables; a dash without cases."""
    if not comparison.differences:
        return "-"
    digits = next(column.digits for column in COLUMNS if column.metric == comparison.metric)
    return f"{comparison.median:{sign}.{digits}f} {UNITS[comparison.metric]}".rstrip()


def json_text(evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison] = ()) -> str:
    """All numbers as JSON; numbers that are not finite are null.

    Returns:
        an object with `classes`, from label to name; `predictions`, from name to `cases`, `summary`, `absent` (from
        label to the number of cases where neither mask has it), `mean_dice` (over the classes) and, with an
        observer, `scores`, and if it was measured, `calibration`; and with `comparisons`.
    """
    predictions: dict[str, Any] = {}
    for evaluation in evaluations:
        predictions[evaluation.name] = {
            "cases": evaluation.cases,
            "summary": summarise(evaluation),
            "absent": {label: evaluation.absent(label) for label in evaluation.labels},
            "mean_dice": mean_dice(evaluation),
        }
        if evaluation.scores:
            predictions[evaluation.name]["scores"] = evaluation.scores
        if evaluation.calibration:
            predictions[evaluation.name]["calibration"] = _calibration(evaluation)
    report = {
        "classes": {label: evaluations[0].title(label) for label in evaluations[0].labels},
        "predictions": predictions,
        "comparisons": [vars(comparison) for comparison in comparisons],
    }
    return json.dumps(plain(report), indent=2, allow_nan=False) + "\n"


def mean_dice(evaluation: Evaluation) -> float:
    """The mean over the classes of each class's mean Dice over the cases."""
    return defined_mean(defined_mean(evaluation.values("dice", label)) for label in evaluation.labels)


def rows(evaluations: Sequence[Evaluation]) -> Iterator[dict[str, Any]]:
    """A row for each set of predictions, case, class and region: dict from column to value.

    The score and the calibration are in the rows of the region `whole`; in those of other regions they are None.
    """
    scored = any(evaluation.scores for evaluation in evaluations)
    calibrated = any(evaluation.calibration for evaluation in evaluations)
    names = [metric.name for metric in METRICS] + [SCORE] * scored + [CALIBRATION] * calibrated
    for evaluation in evaluations:
        for name, case in evaluation.cases.items():
            for label, by_region in case.items():
                for region in by_region:
                    values = {metric: case_value(evaluation, name, label, region, metric) for metric in names}
                    subject = evaluation.name, name, label, evaluation.title(label), region
                    yield {**dict(zip(SUBJECT, subject, strict=True)), **values}


def csv_text(evaluations: Sequence[Evaluation]) -> str:
    """A table as CSV, with a row for each set of predictions, case, class and region.

    Values that are not finite are left empty. The score and the calibration are in the rows of the region `whole`. A
    name that a spreadsheet would take for a formula has an apostrophe before it.
    """
    out = io.StringIO(newline="")
    table = list(rows(evaluations))
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        for name in ("predictions", "case", "class_name"):
            row[name] = csv_name(row[name])
        for name, value in row.items():
            if name not in SUBJECT:
                row[name] = "" if value is None or not math.isfinite(value) else f"{value:.8g}"
        writer.writerow(row)
    return out.getvalue()
