"""What a report says of its runs: the sections of its page, and the pictures that they show."""

import numpy as np

from vnet_fast import plotting
from vnet_fast.evaluation.comparison import COMPARED
from vnet_fast.evaluation.evaluation import SCORE, WHOLE, summarise
from vnet_fast.evaluation.figures import chosen, difference_title, draw_case, draw_distribution
from vnet_fast.evaluation.tables import COLUMNS, TITLES, columns, mean_and_deviation, number
from vnet_fast.reporting.html import paragraph, picture, side_by_side, table, with_bar
from vnet_fast.run.log import minutes

# settings that say how a run was made; those of all runs alike come first
SETTINGS = (
    "data", "loss", "topology", "base_channels", "volume", "spacing", "batch_size", "iterations", "optimizer",
    "learning_rate", "lr_step", "amp", "binary", "no_augment", "folds", "fold", "seed",
)  # fmt: skip
WORDS = {
    "worst": "the lowest Dice",
    "median": "the median Dice",
    "best": "the highest Dice",
}


def make_sections(subjects, evaluations, comparisons, folder):
    """The sections of the page.

    Args:
        subjects: list of `report.Subject`.
        evaluations: list of `evaluation.Evaluation` of them.
        comparisons: list of `comparison.Comparison`.
        folder: where the pictures go.

    Returns:
        list of (heading, list of HTML).
    """
    draw = Pictures(folder)
    return [
        ("Result", [_summary(evaluations), *_compared(evaluations, comparisons, draw)]),
        ("Dice over the cases", [_distribution(evaluations, draw)]),
        ("Training", [side_by_side(_curves(subjects, draw))]),
        ("Best, median and worst case", _overlays(subjects, evaluations, draw)),
        ("All cases, the worst first", [_cases(evaluations)]),
        ("Settings", [_settings(subjects)]),
    ]


class Pictures:
    """Draws each picture in both colour schemes, into a folder and for the page.

    Args:
        folder: of the PNGs: NAME.png and NAME-dark.png.
    """

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, function, alt, caption):
        """HTML of the picture that `function(path, theme)` draws."""
        light, dark = self.folder / f"{name}.png", self.folder / f"{name}-dark.png"
        function(light, plotting.LIGHT)
        function(dark, plotting.DARK)
        return picture(light, dark, alt, caption)


def _summary(evaluations):
    shown = columns(evaluations[0])
    rows = []
    for evaluation in evaluations:
        summary = summarise(evaluation)
        for label in evaluation.labels:
            for region in evaluation.regions:
                found, count = summary[label][region], len(evaluation.cases)
                cells = [mean_and_deviation(found.get(metric), digits, count) for metric, _, digits in shown]
                rows.append([evaluation.name, str(label), region, str(count), *cells])
    caption = (
        "Mean ± standard deviation over cases that the run did not train on, in each volume's own geometry. "
        "HD: Hausdorff distance; HD95: its 95th percentile; ABD: average boundary distance; RVD: relative "
        "volume difference, predicted less reference. Distances leave out cases of which one mask is empty; "
        "(of N) says how many they are of."
    )
    return table(["run", "class", "region", "cases", *(title for _, title, _ in shown)], rows, caption)


def _compared(evaluations, comparisons, draw):
    rows = []
    for each in comparisons:
        values = list(each.differences.values())
        higher, lower = sum(value > 0 for value in values), sum(value < 0 for value in values)
        rows.append([
            f"{each.second} less {each.first}", str(each.label), TITLES[each.metric], number(each.median, 4),
            f"{higher} / {lower} / {len(values) - higher - lower}", f"{each.p_value:.2g}",
        ])  # fmt: skip
    if not rows:
        return []
    caption = "Case by case. p: two-sided paired Wilcoxon signed-rank test, not corrected for the number of tests."
    headings = ["runs", "class", "metric", "median difference", "higher / lower / equal", "p"]
    html = [table(headings, rows, caption, words=(2,))]
    for index, each in enumerate(comparisons):
        if each.metric == COMPARED[0] and each.differences:
            words = f"Dice of {each.second} less that of {each.first}, class {each.label}"
            html.append(
                draw(
                    f"difference-{index}",
                    lambda path, theme, each=each: plotting.differences(
                        each.differences, difference_title(each), path, theme
                    ),
                    f"Bar chart, a bar for each of {len(each.differences)} cases: {words}. "
                    f"The median is {each.median:+.3f}.",
                    f"{words}: a bar for each case, in order.",
                )
            )
    return html


def _distribution(evaluations, draw):
    medians = "; ".join(
        f"{each.name}: median {np.median([each.mean_dice(name) for name in each.cases]):.3f}" for each in evaluations
    )
    return draw(
        "distribution",
        lambda path, theme: draw_distribution(evaluations, path, theme),
        f"Histogram of Dice over the cases. {medians}.",
        "How many cases have which Dice (the mean over the classes). The lines are the medians.",
    )


def _curves(subjects, draw):
    pictures = []
    for index, subject in enumerate(subjects):
        for words, rows in subject.logs.items():
            name = f"{subject.name}{', ' if words else ''}{words}"
            pictures.append(
                draw(
                    f"curves-{index}{words.replace('fold ', '-fold')}",
                    lambda path, theme, rows=rows, name=name: plotting.curves(rows, path, theme, name),
                    f"Loss, validation Dice and learning rate of {name} against the iteration.",
                    words or _about_training(subject),
                )
            )
    return pictures


def _about_training(subject):
    summary = subject.summary
    if not {"iterations", "seconds", "device"} <= summary.keys():
        return "Not finished."
    return (
        f"{summary['iterations']} iterations in {minutes(summary['seconds'])} (minutes:seconds) on "
        f"{summary['device']}, {summary.get('precision', '')}; best validation at iteration "
        f"{summary.get('best_iteration', '?')}."
    )


def _overlays(subjects, evaluations, draw):
    first = evaluations[0]
    html = [paragraph(
        "Contours of the reference (full line) and of the prediction (dashed) on three slices"
        + (f"; the cases are those of {first.name}, the slices the same for all runs." if len(subjects) > 1 else ".")
    )]  # fmt: skip
    files = {case.name: case for case in subjects[0].cases}
    predictions = [{case.name: case.prediction for case in subject.cases} for subject in subjects]
    binary = subjects[0].settings["binary"]
    for words, name in chosen(first).items():
        case = files[name]
        found = ", ".join(f"{each.name} {each.mean_dice(name):.3f}" for each in evaluations if name in each.cases)
        html.append(
            draw(
                words,
                lambda path, theme, words=words, name=name, case=case: draw_case(
                    evaluations,
                    name,
                    words,
                    case.image,
                    case.reference,
                    [each.get(name) for each in predictions],
                    path,
                    binary,
                    theme,
                ),
                f"Three slices of {name} with contours of reference and prediction.",
                f"{name}, {WORDS[words]}: Dice {found}.",
            )
        )
    return html


def _cases(evaluations):
    """A row for each case: Dice of each run and class, and the first run's other metrics."""
    first, several = evaluations[0], len(evaluations) > 1
    others = [name for each in evaluations[1:] for name in each.cases if name not in first.cases]
    ordered = sorted(first.cases, key=first.mean_dice) + list(dict.fromkeys(others))
    headings, rows = ["case"], []
    shown = [("dice", "Dice", 4)] if several else columns(first)
    for each in evaluations:
        for label in each.labels:
            words = ([each.name] if several else []) + ([f"class {label}"] if len(each.labels) > 1 else [])
            headings += [", ".join([*words, title]) for _, title, _ in shown]
    for name in ordered:
        cells = []
        for each in evaluations:
            for label in each.labels:
                cells += [_cell(each, name, label, metric, digits) for metric, _, digits in shown]
        rows.append([name, *cells])
    caption = f"Sorted by Dice of {first.name}." if several else "Sorted by Dice; the bar's full width is 1."
    return table(headings, rows, caption)


def _cell(evaluation, name, label, metric, digits):
    if name not in evaluation.cases:
        return "-"
    if metric == SCORE:
        return number(evaluation.scores[name][label], digits)
    value = evaluation.cases[name][label][WHOLE][metric]
    return with_bar(number(value, digits), value) if metric == COLUMNS[0][0] else number(value, digits)


def _settings(subjects):
    rows = []
    for name in SETTINGS:
        values = [_setting(subject.settings[name]) for subject in subjects]
        if any(values):
            rows.append([name.replace("_", " "), *values])
    headings = ["setting", *(subject.name for subject in subjects)]
    return table(headings, rows, "Of config.json.", words=range(1, len(subjects) + 1))


def _setting(value):
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    return " x ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else str(value)
