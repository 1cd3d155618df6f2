"""Pictures of a run: training curves, and contours over slices. They need matplotlib."""

import csv
import importlib.util

import numpy as np

# told apart without colour too: one is a full line, the other is dashed
REFERENCE = {"colors": "#ffb000", "linestyles": "solid"}
PREDICTION = {"colors": "#40c8ff", "linestyles": "dashed"}
SMOOTHED_SHARE = 50


def available():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width, height):
    # a figure of its own, without pyplot: no display, no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curves(log, path):
    """Loss, validation Dice and learning rate against the iteration, from a run's `log.csv`."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    iteration = np.array([int(row["iteration"]) for row in rows])
    loss = np.array([float(row["loss"]) for row in rows])
    rate = np.array([float(row["learning_rate"]) for row in rows])
    validated = [(int(row["iteration"]), float(row["validation_dice"])) for row in rows if row["validation_dice"]]

    figure = _figure(9, 4)
    axes = figure.add_subplot()
    axes.plot(iteration, loss, color="0.8", linewidth=0.8, label="loss")
    window = max(1, len(loss) // SMOOTHED_SHARE)
    if window > 1:
        mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        axes.plot(iteration[window - 1 :], mean, color="0.35", label=f"loss, mean of {window}")
    if validated:
        axes.plot(*zip(*validated, strict=True), "o-", color="#0072b2", markersize=4, label="validation Dice")
    for drop in iteration[1:][rate[1:] < rate[:-1]]:
        axes.axvline(drop, color="0.6", linestyle=":", linewidth=1)
        axes.annotate("learning rate ÷ 10", (drop, 0.02), rotation=90, fontsize=7, color="0.4")
    axes.set(xlabel="iteration", ylabel="loss, Dice", ylim=(0, max(1.0, float(np.nanmax(loss)))))
    axes.margins(x=0.01)
    axes.grid(color="0.92")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def overlay(image, reference, prediction, spacing, title, path):
    """Contours of prediction and reference on three slices across the structure.

    Args:
        image: (z, y, x) float.
        reference, prediction: (z, y, x) labels.
        spacing: mm, x y z.
        title: above the picture.
        path: of the PNG.
    """
    from matplotlib.lines import Line2D

    marked = np.flatnonzero((reference > 0).any((1, 2)))
    first, last = (marked[0], marked[-1]) if marked.size else (0, len(image) - 1)
    slices = [round(first + share * (last - first)) for share in (0.2, 0.5, 0.8)]
    low, high = np.percentile(image, [1, 99])
    figure = _figure(11, 4.4)
    for axes, z in zip(figure.subplots(1, 3), slices, strict=True):
        axes.imshow(image[z], cmap="gray", vmin=low, vmax=high, aspect=spacing[1] / spacing[0])
        for labels, style in ((reference, REFERENCE), (prediction, PREDICTION)):
            for label in np.unique(labels[z][labels[z] > 0]):
                axes.contour(labels[z] == label, [0.5], linewidths=1.6, **style)
        axes.set_title(f"slice {z + 1} of {len(image)}", fontsize=9)
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=style["colors"], linestyle=style["linestyles"], label=name)
        for name, style in (("reference", REFERENCE), ("prediction", PREDICTION))
    ]
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
