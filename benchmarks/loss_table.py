"""The table of the results of `losses.py`."""

import json
import statistics

from vnet_fast.evaluation.evaluation import WHOLE
from vnet_fast.evaluation.tables import mean_and_deviation
from vnet_fast.reporting.subjects import LOSS_NAMES

# (name in the result, digits)
METRICS = (("dice", 4), ("hausdorff_95_mm", 2), ("average_boundary_distance_mm", 2))
HEADINGS = (
    "data",
    "loss",
    "cases",
    "Dice",
    "median Dice",
    "HD95, mm",
    "ABD, mm",
    "median difference of Dice to the other loss, p",
)


def section(folder):
    """Markdown of the results in a folder, in the order of their names."""
    paragraphs = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = content["runs"][0]["labels"]
        rows = [_row(path.stem, content, run, label) for label in labels for run in content["runs"]]
        lines = [f"| {' | '.join(HEADINGS)} |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2), *rows]
        paragraphs.append(_caption(content) + "\n\n" + "\n".join(lines) + "\n")
    return "\n".join(paragraphs)


def _caption(content):
    training, provenance = content["runs"][0]["training"], content["about"]
    return (
        f"`{content['command']}`, with `--loss dice` and `--loss weighted-ce`; {training['iterations']} iterations on "
        f"{provenance['processor']}, {training['device']}, {training['precision']}, torch {provenance['torch']}, "
        f"{provenance['date']}:"
    )


def _row(name, content, run, label):
    statistics_of = run["labels"][label][WHOLE]
    number = len(run["cases"])
    dice, hausdorff, boundary = (
        mean_and_deviation(statistics_of[metric], digits, number) for metric, digits in METRICS
    )
    comparison = next(
        entry for entry in content["comparisons"] if (str(entry["label"]), entry["metric"]) == (label, "dice")
    )
    # stored as the second run's values less the first run's
    sign = -1 if run is content["runs"][0] else 1
    difference = sign * statistics.median(comparison["differences"].values())
    cells = [
        f"{name}, class {label}" if len(run["labels"]) > 1 else name,
        LOSS_NAMES[run["loss"]],
        str(number),
        dice,
        f"{statistics_of['dice']['median']:.4f}",
        hausdorff,
        boundary,
        f"{difference:+.4f}, {comparison['p_value']:.1g}",
    ]
    return f"| {' | '.join(cells)} |"
