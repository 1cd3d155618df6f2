"""The sections of a report: its tables, texts and pictures."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vnet_fast import plotting
from vnet_fast.evaluation.calibration import BINS
from vnet_fast.evaluation.comparison import COMPARED, TITLES, Comparison
from vnet_fast.evaluation.evaluation import WHOLE, Evaluation
from vnet_fast.evaluation.figures import difference_title, draw_difference, draw_distribution, rated_dice
from vnet_fast.evaluation.probabilities import MARGIN
from vnet_fast.evaluation.reliability import draw_calibration
from vnet_fast.evaluation.summary import summarise
from vnet_fast.evaluation.tables import (
    COLUMNS,
    Column,
    case_value,
    class_cell,
    columns,
    describe_calibration,
    explain_undefined,
    format_difference,
    mean_and_deviation,
    number,
)
from vnet_fast.regions import Region
from vnet_fast.reporting.cases import explain_overlays, explain_viewer, show_cases, worst_first
from vnet_fast.reporting.html import Bar, Picture, Section, Table
from vnet_fast.reporting.pictures import draw_picture
from vnet_fast.reporting.subjects import Subject
from vnet_fast.run.augmentation import changes_to_the_papers
from vnet_fast.run.fold_options import ALL
from vnet_fast.run.log import minutes

# the settings that are shown, if at least one run has a value
SETTINGS = (
    "data", "recipe", "init", "freeze", "loss", "topology", "norm", "levels", "kernel_size", "halvings",
    "base_channels", "volume",
    "spacing", "patches", "batch_size", "iterations", "minutes", "patience", "optimizer", "learning_rate", "schedule",
    "lr_step", "warmup", "clip", "ema", "amp", "binary", "regions", "ignore_label", "no_augment", "split",
    "folds", "fold", "seed",
)  # fmt: skip
# of these, 0 is no value
OFF_AT_ZERO = {"freeze", "warmup"}
RESULT_CAPTION = (
    "Mean ± standard deviation over the cases that the run did not train on, in each volume's own geometry. "
    "HD: Hausdorff distance; HD95: its 95th percentile; ABD: average boundary distance; RVD: relative volume "
    "difference, prediction minus reference. A class that neither mask of a case has is not rated there, and "
    "distances leave out cases where one mask is empty; (of N) is the number of cases that remain."
)

CALIBRATION_CAPTION = (
    f"Of the voxels with a probability in one of {BINS} bins: the share that is in the reference, against their mean "
    "probability. Where probabilities can be trusted, the line is the diagonal. Below it, they are too high. ECE: "
    "expected calibration error, the mean distance to the diagonal, weighted by the voxels, whose numbers are below. "
    f"Voxels of a box around prediction and reference count, with a margin of {MARGIN:g} mm."
)


def make_sections(
    subjects: Sequence[Subject],
    evaluations: Sequence[Evaluation],
    comparisons: Sequence[Comparison],
    folder: Path,
    unions: Sequence[Region] = (),
) -> list[Section]:
    """Makes the sections of a report and draws their pictures.

    Args:
        subjects: the runs.
        evaluations: of the runs, in the same order.
        comparisons: of the evaluations.
        folder: where the pictures are written.
        unions: of labels, which are the classes if there are any.

    Raises:
        InputError: if a volume or mask can't be read.
    """
    result_tables = [_result_table(evaluations)]
    result_tables += [_comparison_table(comparisons, evaluations[0])] if comparisons else []
    curves = _draw_curves(subjects, folder)
    overlays, viewer = show_cases(subjects, evaluations, unions, folder)
    return [
        Section("Result", result_tables, pictures=_draw_differences(comparisons, evaluations, folder)),
        Section("Dice over the cases", pictures=[_draw_distribution(evaluations, folder)]),
        *_calibration(evaluations, folder),
        Section("Training", pictures=curves, side_by_side=True),
        Section("Best, median and worst case", text=explain_overlays(evaluations), pictures=overlays),
        Section("Slice by slice", text=explain_viewer(viewer, evaluations[0]), viewer=viewer),
        Section("All cases, the worst first", [_case_table(evaluations)]),
        Section("Settings", [_settings_table(subjects)]),
    ]


def _result_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row of means for each run, class and region."""
    shown = columns(evaluations[0])
    rows = []
    for evaluation in evaluations:
        summary, total = summarise(evaluation), len(evaluation.cases)
        for label in evaluation.labels:
            for region in evaluation.regions:
                statistics = summary[label][region]
                cells = [mean_and_deviation(statistics.get(c.metric), c.digits, total) for c in shown]
                rows.append([evaluation.name, class_cell(evaluation, label), region, str(total), *cells])
    caption = " ".join([RESULT_CAPTION, *_undefined(evaluations)])
    return Table(["run", "class", "region", "cases", *(column.heading for column in shown)], rows, caption)


def _undefined(evaluations: Sequence[Evaluation]) -> list[str]:
    """Sentences about values that are not defined in all cases."""
    several = len(evaluations) > 1
    return [
        f"{evaluation.name + ', ' if several else ''}{line}."
        for evaluation in evaluations
        for line in explain_undefined(evaluation)
    ]


def _comparison_table(comparisons: Sequence[Comparison], evaluation: Evaluation) -> Table:
    rows = []
    for comparison in comparisons:
        equal = len(comparison.differences) - comparison.higher - comparison.lower
        rows.append([
            f"{comparison.second} less {comparison.first}", class_cell(evaluation, comparison.label),
            TITLES[comparison.metric],
            format_difference(comparison), f"{comparison.higher} / {comparison.lower} / {equal}",
            f"{comparison.p_value:.2g}" if comparison.differences else "-",
        ])  # fmt: skip
    caption = "Case by case. p: two-sided paired Wilcoxon signed-rank test, not corrected for the number of tests."
    headings = ["runs", "class", "metric", "median difference", "higher / lower / equal", "p"]
    return Table(headings, rows, caption, text_columns={2})


def _draw_differences(
    comparisons: Sequence[Comparison], evaluations: Sequence[Evaluation], folder: Path
) -> list[Picture]:
    pictures = []
    for index, comparison in enumerate(comparisons):
        if comparison.metric != COMPARED[0] or not comparison.differences:
            continue
        subject = difference_title(comparison)
        alt = (
            f"Bar chart, a bar for each of {len(comparison.differences)} cases: {subject}. The median is "
            f"{comparison.median:+.3f}."
        )
        draw = partial(draw_difference, comparison, evaluations)
        pictures.append(draw_picture(folder, f"difference-{index}", draw, alt, f"{subject}: a bar for each case."))
    return pictures


def _draw_distribution(evaluations: Sequence[Evaluation], folder: Path) -> Picture:
    medians = "; ".join(
        f"{evaluation.name}: median {number(float(np.median(rated_dice(evaluation) or [np.nan])), 3)}"
        for evaluation in evaluations
    )
    return draw_picture(
        folder,
        "distribution",
        partial(draw_distribution, evaluations),
        f"Histogram of Dice over the cases. {medians}.",
        "Number of cases by Dice, which is the mean over the classes. The lines are the medians.",
    )


def _calibration(evaluations: Sequence[Evaluation], folder: Path) -> list[Section]:
    """The section about the calibration, if it was measured."""
    if not any(evaluation.calibration for evaluation in evaluations):
        return []
    errors = "; ".join(
        f"{evaluation.name}, {line}" for evaluation in evaluations for line in describe_calibration(evaluation)
    )
    alt = f"Reliability diagram of each class. {errors}."
    draw = partial(draw_calibration, evaluations)
    return [Section("Calibration", pictures=[draw_picture(folder, "calibration", draw, alt, CALIBRATION_CAPTION)])]


def _draw_curves(subjects: Sequence[Subject], folder: Path) -> list[Picture]:
    pictures = []
    for index, subject in enumerate(subjects):
        for fold, rows in subject.logs.items():
            title = f"{subject.name}, {fold}" if fold else subject.name
            pictures.append(
                draw_picture(
                    folder,
                    f"curves-{index}{fold.replace('fold ', '-fold')}",
                    partial(plotting.curves, rows, title=title),
                    f"Loss, validation Dice and learning rate of {title} against the iteration.",
                    fold or _describe_training(subject),
                )
            )
    return pictures


def _describe_training(subject: Subject) -> str:
    summary = subject.summary
    if not {"iterations", "seconds", "device"} <= summary.keys():
        return "Not finished."
    return (
        f"{summary['iterations']} iterations in {minutes(summary['seconds'])} (minutes:seconds) on "
        f"{summary['device']}, {summary.get('precision', '')}; best validation at iteration "
        f"{summary.get('best_iteration', '?')}."
    )


def _case_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row for each case: Dice of each run and class, and further metrics if there is only one run."""
    first, several = evaluations[0], len(evaluations) > 1
    shown = list(COLUMNS[:1]) if several else columns(first)
    headings, rows = ["case"], []
    for evaluation in evaluations:
        for label in evaluation.labels:
            subject = [evaluation.name] if several else []
            subject += [evaluation.title(label)] if len(evaluation.labels) > 1 else []
            headings += [", ".join([*subject, column.heading]) for column in shown]
    for name in worst_first(evaluations):
        cells: list[str | Bar] = [name]
        for evaluation in evaluations:
            for label in evaluation.labels:
                cells += [_case_cell(evaluation, name, label, column) for column in shown]
        rows.append(cells)
    caption = f"Sorted by Dice of {first.name}." if several else "Sorted by Dice; the bar's full width is 1."
    return Table(headings, rows, caption, of_cases=True)


def _case_cell(evaluation: Evaluation, name: str, label: int, column: Column) -> str | Bar:
    if name not in evaluation.cases:
        return "-"
    value = case_value(evaluation, name, label, WHOLE, column.metric)
    text = number(value, column.digits)
    return Bar(text, value) if value is not None and column == COLUMNS[0] and not np.isnan(value) else text


def _settings_table(subjects: Sequence[Subject]) -> Table:
    rows = []
    for name in SETTINGS:
        values = [_setting(subject, name) for subject in subjects]
        if name in OFF_AT_ZERO:
            values = ["" if value == "0" else value for value in values]
        if any(values):
            rows.append([name.replace("_", " "), *values])
    changes = [changes_to_the_papers(subject.settings) for subject in subjects]
    if any(changes):
        rows.append(["augmentation", *changes])
    headings = ["setting", *(subject.name for subject in subjects)]
    return Table(headings, rows, "From config.json.", text_columns=range(1, len(subjects) + 1))


def _setting(subject: Subject, name: str) -> str:
    """A cell with a setting of a run, or of a cross-validation."""
    settings = subject.settings
    # in so many minutes, each fold makes a number of its own
    if name == "iterations" and settings["fold"] == ALL and settings["minutes"] is not None:
        return ""
    return _format_setting(settings[name])


def _format_setting(value: object) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, tuple):
        numbers = all(isinstance(entry, int | float) for entry in value)
        return " x ".join(f"{entry:g}" for entry in value) if numbers else "; ".join(map(str, value))
    return str(value)
