"""Draws the calibration of probabilities: reliability diagrams, with the number of voxels in each bin below them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vnet_fast import plotting
from vnet_fast.evaluation.calibration import BINS, Calibration, pooled
from vnet_fast.evaluation.evaluation import Evaluation, picture_names
from vnet_fast.evaluation.tables import number as cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of diagrams beside each other
MOST_COLUMNS = 3


def draw_calibration(evaluations: Sequence[Evaluation], path: Path, theme: plotting.Theme = plotting.LIGHT) -> None:
    """Draws a reliability diagram of each class, with a line for each set of predictions.

    Args:
        evaluations: whose calibration was measured.
        path: of the PNG.
        theme: `plotting.LIGHT` or `plotting.DARK`.
    """
    labels = evaluations[0].labels
    columns = min(MOST_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = plotting.make_figure(1 + 3.4 * columns, 0.4 + 4.2 * rows, theme)
    grid = figure.subplots(2 * rows, columns, sharex=True, squeeze=False, height_ratios=(3, 1) * rows)
    for axes in grid.flat:
        plotting.apply_theme(axes, theme)
    names = picture_names(evaluations)
    for index, label in enumerate(labels):
        row, column = divmod(index, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.plot([0, 1], [0, 1], color=theme.faint, linewidth=1)
        for number, evaluation in enumerate(evaluations):
            measured = pooled(evaluation.calibration.values(), label)
            if measured:
                name = f"{names[evaluation.name]}: ECE" if len(evaluations) > 1 else "ECE"
                _draw(above, below, measured, name, number, theme)
        above.set_title(plotting.escape(evaluations[0].title(label)), fontsize=10, color=theme.text)
        above.set(ylim=(0, 1), ylabel="share in the reference" if column == 0 else None)
        below.set(yscale="log", xlim=(0, 1), xlabel="probability", ylabel="voxels" if column == 0 else None)
        below.tick_params(labelbottom=True)
        below.minorticks_off()
        if above.get_legend_handles_labels()[1]:
            above.legend(frameon=False, labelcolor=theme.text, fontsize=8, loc="upper left")
    for index in range(len(labels), rows * columns):
        row, column = divmod(index, columns)
        grid[2 * row, column].set_visible(False)
        grid[2 * row + 1, column].set_visible(False)
    figure.savefig(path, dpi=plotting.DPI)


def _draw(above: "Axes", below: "Axes", measured: Calibration, name: str, number: int, theme: plotting.Theme) -> None:
    """Draws the line of one set of predictions, and how many voxels there are in each bin."""
    text = plotting.escape(f"{name} {cell(measured.error, 3)}")
    colour, line = theme.series[number], plotting.LINES[number]
    above.plot(measured.mean_probability, measured.share, "o", markersize=3.5, color=colour)
    above.plot(measured.mean_probability, measured.share, linewidth=1.6, label=text, color=colour, linestyle=line)
    # an empty bin is below the logarithmic axis
    voxels = np.maximum(measured.voxels, 0.5)
    below.stairs(voxels, np.linspace(0, 1, BINS + 1), baseline=0.5, linewidth=1.4, color=colour, linestyle=line)
