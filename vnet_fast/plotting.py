"""Draws training curves, contours over slices and Dice over cases, with matplotlib."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vnet_fast.slices import (
    ContourStyle,
    choose_slices,
    crop_around,
    draw_contours,
    height_of_row,
    intensity_limits,
    show_slice,
)
from vnet_fast.text_table import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# one iteration of a run's log: its number, the loss, the learning rate, and the validation Dice or None
LogRow = tuple[int, float, float, float | None]

# the loss is averaged over windows of which so many make up the run
SMOOTHING_WINDOWS = 50
DPI = 120
# edges of the histogram's bars, Dice
BINS = np.linspace(0, 1, 21)
# up to this number of cases, each bar is labelled with the name of its case
MAX_NAMED_BARS = 45
# in a legend with two columns, characters
LONGEST_OF_TWO_LABELS = 48
# sets of predictions that one picture can distinguish
MAX_SERIES = 4


@dataclass(frozen=True)
class Theme:
    """The colours of a picture. Series also differ in line style and hatching, for readers who do not see colours."""

    face: str
    text: str
    faint: str
    grid: str
    series: tuple[str, ...]


# the series have Okabe and Ito's colours, which colour-blind readers can distinguish
LIGHT = Theme("#ffffff", "#1c1f24", "#8a8f98", "#e6e8eb", ("#0072b2", "#d55e00", "#009e73", "#cc79a7"))
DARK = Theme("#16181d", "#e6e8eb", "#9aa0aa", "#31353d", ("#56b4e9", "#e69f00", "#2bc79a", "#e29ac2"))
LINES = ("solid", "dashed", "dotted", "dashdot")
HATCHES = ("", "///", "...", "xxx")


REFERENCE = ContourStyle("#ffb000", "solid")
PREDICTION = ContourStyle("#40c8ff", "dashed")


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def make_figure(width: float, height: float, theme: Theme) -> "Figure":
    """A figure, inches, in the theme's colours."""
    # without pyplot, which needs a display and keeps global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.face)
    FigureCanvasAgg(figure)
    return figure


def apply_theme(axes: "Axes", theme: Theme) -> None:
    """Gives a plot the theme's colours."""
    axes.set_facecolor(theme.face)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.text, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(theme.text)


def escape(text: str) -> str:
    """Escapes dollar signs, which would start a formula, and characters that can't be drawn."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def add_legend(figure: "Figure", theme: Theme, **arguments: object) -> None:
    """Adds a legend below a figure."""
    figure.legend(loc="outside lower center", frameon=False, labelcolor=theme.text, fontsize=9, **arguments)


def curves(rows: Sequence[LogRow], path: str | Path, theme: Theme = LIGHT, title: str | None = None) -> None:
    """Draws loss, validation Dice and, below them, the learning rate against the iteration.

    Args:
        rows: of a run's log, at least one.
        path: of the PNG.
        theme: LIGHT or DARK.
        title: above the picture, or None.
    """
    iteration, loss, rate = (np.array(column) for column in list(zip(*rows, strict=True))[:3])
    validations = [(iteration, dice) for iteration, _, _, dice in rows if dice is not None]

    figure = make_figure(7, 4.4, theme)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot(iteration, loss, color=theme.faint, alpha=0.6, linewidth=0.8, label="loss")
    window = max(1, len(loss) // SMOOTHING_WINDOWS)
    if window > 1:
        mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        axes.plot(iteration[window - 1 :], mean, color=theme.text, label=f"loss, mean of {window}")
    if validations:
        axes.plot(*zip(*validations, strict=True), "o-", color=theme.series[0], markersize=4, label="validation Dice")
    # single outliers of the loss must not flatten the rest of the curve
    axes.set(ylabel="loss, Dice", ylim=(0, max(1.0, 1.2 * float(np.nanpercentile(loss, 98)))))
    axes.margins(x=0.01)
    below.step(iteration, rate, where="post", color=theme.series[1])
    below.set(xlabel="iteration", ylabel="learning\nrate", yscale="log")
    below.set_ylim(rate.min() / 3, rate.max() * 3)
    apply_theme(axes, theme)
    apply_theme(below, theme)
    below.minorticks_off()
    if title:
        figure.suptitle(escape(title), fontsize=11, color=theme.text)
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, theme, handles=handles, labels=labels, ncols=3)
    figure.savefig(path, dpi=DPI)


def overlay(
    image: np.ndarray,
    reference: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    title: str,
    path: str | Path,
    theme: Theme = LIGHT,
) -> None:
    """Draws the contours of predictions and reference on three slices of the structure, a row for each prediction.

    The slices are axial and in radiological orientation, as if seen from the feet: the patient's right is on the left
    of the picture, and anterior is up. Letters at the edges say so.

    Args:
        image: (z, y, x) float; its axes point to the patient's left (x), posterior (y) and superior (z).
        reference: (z, y, x) labels.
        predictions: from a name, which may be "", to (z, y, x) labels.
        spacing: mm, x y z.
        title: above the picture.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    slices = choose_slices(reference)
    rows, columns = crop_around([reference, *predictions.values()], slices, spacing)
    image = image[:, rows, columns]
    limits = intensity_limits(image, slices)

    figure = make_figure(11, 0.9 + len(predictions) * (height_of_row(image, spacing) + 0.25), theme)
    grid = figure.subplots(len(predictions), 3, squeeze=False)
    for (name, labels), row in zip(predictions.items(), grid, strict=True):
        for axes, z in zip(row, slices, strict=True):
            show_slice(axes, image, z, limits, spacing, theme.text)
            draw_contours(axes, reference[z, rows, columns], REFERENCE)
            draw_contours(axes, labels[z, rows, columns], PREDICTION)
            # contours reach half a voxel beyond the image
            axes.set_facecolor(theme.face)
        row[0].set_ylabel(escape(name), fontsize=10, color=theme.text)
    figure.suptitle(escape(title), fontsize=11, color=theme.text)
    _add_contour_legend(figure, theme)
    figure.savefig(path, dpi=DPI)


def _add_contour_legend(figure: "Figure", theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.color, linestyle=style.linestyle, label=name)
        for name, style in (("reference", REFERENCE), ("prediction", PREDICTION))
    ]
    add_legend(figure, theme, handles=handles, ncols=2)


def distribution(dice: Mapping[str, Sequence[float]], path: str | Path, theme: Theme = LIGHT) -> None:
    """Draws a histogram of the cases over Dice, like figure 5 of the V-Net paper.

    Args:
        dice: from the name of a set of predictions to its cases' Dice; at most `MAX_SERIES` sets.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    from matplotlib.legend_handler import HandlerTuple

    figure = make_figure(9, 3.8, theme)
    axes = figure.subplots()
    width, handles, labels = (BINS[1] - BINS[0]) * 0.86 / len(dice), [], []
    for index, (name, values) in enumerate(dice.items()):
        counts, _ = np.histogram(np.clip(values, 0, 1), BINS)
        left = BINS[:-1] + 0.07 * (BINS[1] - BINS[0]) + index * width
        bars = axes.bar(left, counts, width, align="edge", color=theme.series[index], hatch=HATCHES[index],
                        edgecolor=theme.face)  # fmt: skip
        median = float(np.median(values)) if values else float("nan")
        handles.append((bars, axes.axvline(median, color=theme.text, linestyle=LINES[index], linewidth=1.4)))
        number = f"median {median:.3f} of {len(values)} cases" if values else "no cases"
        labels.append(escape(f"{name}: {number}"))
    lowest = min((value for values in dice.values() for value in values), default=1.0)
    axes.set(xlabel="Dice", ylabel="cases", xlim=(max(0.0, np.floor(lowest * 10 - 1) / 10), 1))
    axes.locator_params(axis="y", integer=True)
    columns = 1 if max(map(len, labels)) > LONGEST_OF_TWO_LABELS else min(2, len(dice))
    apply_theme(axes, theme)
    add_legend(
        figure, theme, handles=handles, labels=labels, ncols=columns, handlelength=4,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )  # fmt: skip
    figure.savefig(path, dpi=DPI)


def differences(values: Mapping[str, float], title: str, path: str | Path, theme: Theme = LIGHT) -> None:
    """Draws a bar for each case, in order of the difference.

    Args:
        values: from the case's name to the difference.
        title: above the picture.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    ordered = sorted(values, key=lambda name: values[name])
    heights = np.array([values[name] for name in ordered])
    figure = make_figure(9, 3.8, theme)
    axes = figure.subplots()
    lower = -1, "lower", theme.series[1], HATCHES[1], theme.face
    higher = 1, "higher", theme.series[0], HATCHES[0], theme.face
    equal = 0, "equal", "none", "", theme.text
    for sign, description, color, hatch, edge in (lower, higher, equal):
        positions = np.flatnonzero(np.sign(heights) == sign)
        if positions.size:
            label = f"{description} in {'1 case' if positions.size == 1 else f'{positions.size} cases'}"
            axes.bar(positions, heights[positions], color=color, hatch=hatch, edgecolor=edge, label=label)
    axes.axhline(0, color=theme.text, linewidth=0.8)
    axes.set(ylabel="difference", xticks=[])
    figure.suptitle(escape(title), fontsize=11, color=theme.text)
    axes.margins(x=0.01)
    if len(ordered) <= MAX_NAMED_BARS:
        axes.set_xticks(range(len(ordered)), map(escape, ordered), rotation=90)
    apply_theme(axes, theme)
    axes.tick_params(axis="x", labelsize=7)
    add_legend(figure, theme, ncols=3)
    figure.savefig(path, dpi=DPI)
