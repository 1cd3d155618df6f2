"""Evaluations and comparisons as text, JSON and CSV."""

import csv
import io
import json
import math

from vnet_fast.evaluation.evaluation import SCORE, WHOLE, summarise
from vnet_fast.evaluation.metrics import METRICS

# the columns of the table in text: the metric, its heading, digits behind the point
COLUMNS = (
    ("dice", "Dice", 4),
    ("hausdorff_mm", "HD mm", 2),
    ("hausdorff_95_mm", "HD95 mm", 2),
    ("average_boundary_distance_mm", "ABD mm", 2),
    ("relative_volume_difference_percent", "RVD %", 1),
)
SCORE_COLUMN = (SCORE, "score", 1)
TITLES = {metric.name: metric.title for metric in METRICS}


def text(evaluations, comparisons=()):
    """What is printed.

    Args:
        evaluations: list of `evaluation.Evaluation`.
        comparisons: list of `comparison.Comparison`.

    Returns:
        list of lines.
    """
    lines = []
    for evaluation in evaluations:
        lines += [f"{evaluation.name}:"] if len(evaluations) > 1 else []
        lines += _table(evaluation)
    if comparisons:
        lines += [_compared(comparison) for comparison in comparisons]
    return lines


def columns(evaluation):
    """The columns of its table: (metric, heading, digits)."""
    return [*COLUMNS, SCORE_COLUMN] if evaluation.scores else list(COLUMNS)


def _table(evaluation):
    shown = columns(evaluation)
    width = max(len("mean ± SD"), *(len(name) for name in evaluation.cases))
    lines = [f"{'case':{width}}  class  region" + "".join(f"  {title:>15}" for _, title, _ in shown)]
    rows = [(label, region) for label in evaluation.labels for region in evaluation.regions]
    for name, case in evaluation.cases.items():
        for label, region in rows:
            values = [
                evaluation.scores[name][label] if metric == SCORE else case[label][region][metric]
                for metric, _, _ in shown
            ]
            cells = [
                "" if metric == SCORE and region != WHOLE else number(value, digits)
                for value, (metric, _, digits) in zip(values, shown, strict=True)
            ]
            lines.append(_line(name, label, region, cells, width))
    summary = summarise(evaluation)
    for words, of in (("mean ± SD", mean_and_deviation), ("median", _median)):
        for label, region in rows:
            cells = [of(summary[label][region].get(metric), digits) for metric, _, digits in shown]
            lines.append(_line(words, label, region, cells, width))
    return lines + _left_out(evaluation, summary)


def _line(name, label, region, cells, width):
    return f"{name:{width}}  {label:5}  {region:6}" + "".join(f"  {cell:>15}" for cell in cells)


def number(value, digits):
    """A number as a cell of a table; a dash where it is not defined, as a distance to an empty mask."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "-"


def mean_and_deviation(statistics, digits, total=None):
    """A cell of what `evaluation.statistics` returned, or of None.

    Args:
        statistics: dict.
        digits: behind the point.
        total: None, or the number of cases: then it is said if they are of fewer.
    """
    if statistics is None:
        return ""
    counted = f" (of {statistics['cases']})" if total is not None and statistics["cases"] < total else ""
    return f"{number(statistics['mean'], digits)} ± {number(statistics['standard_deviation'], digits)}{counted}"


def _median(statistics, digits):
    return "" if statistics is None else number(statistics["median"], digits)


def _left_out(evaluation, summary):
    """Says of how many cases the distances are, where it is not of all."""
    lines = []
    for label in evaluation.labels:
        for region in evaluation.regions:
            counted = summary[label][region]["hausdorff_mm"]["cases"]
            if counted < len(evaluation.cases):
                lines.append(
                    f"class {label}, {region}: distances of {counted} of {len(evaluation.cases)} cases; "
                    "in the others one mask is empty"
                )
    return lines


def _compared(comparison):
    title, count = TITLES[comparison.metric], len(comparison.differences)
    if not count:
        return f"{comparison.second} - {comparison.first}, class {comparison.label}, {title}: no case has both"
    better = sum(difference > 0 for difference in comparison.differences.values())
    worse = sum(difference < 0 for difference in comparison.differences.values())
    return (
        f"{comparison.second} - {comparison.first}, class {comparison.label}, {title}: median difference "
        f"{comparison.median:+.4f} (higher in {better}, lower in {worse} of {count} cases), "
        f"paired Wilcoxon p = {comparison.p_value:.2g}"
    )


def json_text(evaluations, comparisons=()):
    """All numbers as JSON: `predictions`, from name to `cases`, `summary` and, with an observer, `scores`; and
    `comparisons`. A number that is not finite is null.
    """
    report = {"predictions": {}, "comparisons": [vars(comparison) for comparison in comparisons]}
    for evaluation in evaluations:
        content = {"cases": evaluation.cases, "summary": summarise(evaluation)}
        report["predictions"][evaluation.name] = content | ({"scores": evaluation.scores} if evaluation.scores else {})
    return json.dumps(plain(report), indent=2, allow_nan=False) + "\n"


def plain(value):
    """The same structure as JSON keeps it, with None for what it has no number for."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(evaluations):
    """A row for each set of predictions, case, class and region. What is not finite is left empty; the score
    stands beside the region `whole`.
    """
    scored = any(evaluation.scores for evaluation in evaluations)
    names = [metric.name for metric in METRICS] + ([SCORE] if scored else [])
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["predictions", "case", "class", "region", *names])
    for evaluation in evaluations:
        for name, case in evaluation.cases.items():
            for label, by_region in case.items():
                for region, values in by_region.items():
                    extra = {SCORE: evaluation.scores[name][label]} if scored and region == WHOLE else {}
                    cells = [({**values, **extra}).get(metric, math.nan) for metric in names]
                    shown = [f"{cell:.8g}" if math.isfinite(cell) else "" for cell in cells]
                    writer.writerow([evaluation.name, name, label, region, *shown])
    return out.getvalue()
