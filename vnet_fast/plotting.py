"""Pictures: training curves, contours over slices, Dice over cases. They need matplotlib."""

import importlib.util
from dataclasses import dataclass

import numpy as np

SMOOTHED_SHARE = 50
DPI = 120
# Dice of a histogram's bars
BINS = np.linspace(0, 1, 21)
# of a picture's slices, around the structures: a margin as a share of their extent, and mm at least
MARGIN, LEAST_MARGIN = 0.35, 12.0
# cases that are named below their bars
NAMED = 45
# sets of predictions that are told apart
MOST = 4


@dataclass(frozen=True)
class Theme:
    """Colours of a picture. Series are told apart without colour too: by the kind of line and by hatching."""

    face: str
    text: str
    faint: str
    grid: str
    series: tuple[str, ...]


# series: of Okabe and Ito's colours, which are told apart by those who see colours otherwise
LIGHT = Theme("#ffffff", "#1c1f24", "#8a8f98", "#e6e8eb", ("#0072b2", "#d55e00", "#009e73", "#cc79a7"))
DARK = Theme("#16181d", "#e6e8eb", "#9aa0aa", "#31353d", ("#56b4e9", "#e69f00", "#2bc79a", "#e29ac2"))
LINES = ("solid", "dashed", "dotted", "dashdot")
HATCHES = ("", "///", "...", "xxx")
# over grey slices
REFERENCE = {"colors": "#ffb000", "linestyles": "solid"}
PREDICTION = {"colors": "#40c8ff", "linestyles": "dashed"}


def available():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width, height, theme):
    # a figure of its own, without pyplot: no display, no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.face)
    FigureCanvasAgg(figure)
    return figure


def _dress(axes, theme):
    """The theme's colours for a plot."""
    axes.set_facecolor(theme.face)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.text, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(theme.text)


def _plain(text):
    """A text in which a dollar sign is no beginning of a formula."""
    return text.replace("$", r"\$")


def _legend(figure, theme, **arguments):
    figure.legend(loc="outside lower center", frameon=False, labelcolor=theme.text, fontsize=9, **arguments)


def curves(rows, path, theme=LIGHT, title=None):
    """Loss, validation Dice and, below, the learning rate against the iteration.

    Args:
        rows: of a run's log, at least one: (iteration, loss, learning rate, validation Dice or None).
        path: of the PNG.
        theme: LIGHT or DARK.
        title: above the picture, or None.
    """
    iteration, loss, rate = (np.array(column) for column in list(zip(*rows, strict=True))[:3])
    validated = [(iteration, dice) for iteration, _, _, dice in rows if dice is not None]

    figure = _figure(7, 4.4, theme)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot(iteration, loss, color=theme.faint, alpha=0.6, linewidth=0.8, label="loss")
    window = max(1, len(loss) // SMOOTHED_SHARE)
    if window > 1:
        mean = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        axes.plot(iteration[window - 1 :], mean, color=theme.text, label=f"loss, mean of {window}")
    if validated:
        axes.plot(*zip(*validated, strict=True), "o-", color=theme.series[0], markersize=4, label="validation Dice")
    # a single wild step does not flatten the rest
    axes.set(ylabel="loss, Dice", ylim=(0, max(1.0, 1.2 * float(np.nanpercentile(loss, 98)))))
    axes.margins(x=0.01)
    below.step(iteration, rate, where="post", color=theme.series[1])
    below.set(xlabel="iteration", ylabel="learning\nrate", yscale="log")
    below.set_ylim(rate.min() / 3, rate.max() * 3)
    for each in (axes, below):
        _dress(each, theme)
    below.minorticks_off()
    if title:
        figure.suptitle(_plain(title), fontsize=11, color=theme.text)
    handles, labels = axes.get_legend_handles_labels()
    _legend(figure, theme, handles=handles, labels=labels, ncols=3)
    figure.savefig(path, dpi=DPI)


def overlay(image, reference, predictions, spacing, title, path, theme=LIGHT):
    """Contours of predictions and reference on three slices across the structure, a row for each prediction.

    Args:
        image: (z, y, x) float.
        reference: (z, y, x) labels.
        predictions: dict from a name, which may be "", to (z, y, x) labels.
        spacing: mm, x y z.
        title: above the picture.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    from matplotlib.lines import Line2D

    marked = np.flatnonzero((reference > 0).any((1, 2)))
    first, last = (marked[0], marked[-1]) if marked.size else (0, len(image) - 1)
    slices = [round(first + share * (last - first)) for share in (0.2, 0.5, 0.8)]
    rows, columns = _window([reference, *predictions.values()], slices, spacing)
    image = image[:, rows, columns]
    shape = image.shape[1] * spacing[1] / (image.shape[2] * spacing[0])
    low, high = np.percentile(image[slices], [1, 99.5])

    figure = _figure(11, 0.9 + len(predictions) * (3.5 * min(max(shape, 0.4), 1.6) + 0.25), theme)
    for (name, labels), line in zip(
        predictions.items(), figure.subplots(len(predictions), 3, squeeze=False), strict=True
    ):
        for axes, z in zip(line, slices, strict=True):
            axes.imshow(image[z], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=spacing[1] / spacing[0])
            for mask, style in ((reference, REFERENCE), (labels, PREDICTION)):
                _outline(axes, mask[z, rows, columns], style)
            axes.set_title(f"slice {z + 1} of {len(image)}", fontsize=9, color=theme.text)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(_plain(name), fontsize=10, color=theme.text)
    handles = [
        Line2D([], [], color=style["colors"], linestyle=style["linestyles"], label=name)
        for name, style in (("reference", REFERENCE), ("prediction", PREDICTION))
    ]
    figure.suptitle(_plain(title), fontsize=11, color=theme.text)
    _legend(figure, theme, handles=handles, ncols=2)
    figure.savefig(path, dpi=DPI)


def _window(masks, slices, spacing):
    """Rows and columns around what is marked on the slices; all of them where nothing is."""
    seen = np.any([(mask[slices] > 0).any(0) for mask in masks], axis=0)
    window = []
    for axis, mm in ((1, spacing[1]), (0, spacing[0])):
        at = np.flatnonzero(seen.any(axis))
        if not at.size:
            return slice(None), slice(None)
        margin = round(max(MARGIN * (at[-1] - at[0] + 1), LEAST_MARGIN / mm))
        window.append(slice(max(0, at[0] - margin), at[-1] + 1 + margin))
    return tuple(window)


def _outline(axes, labels, style):
    """The borders of each label, along the voxels' edges where it meets the picture's border too."""
    for label in np.unique(labels[labels > 0]):
        padded = np.pad((labels == label).astype(float), 1)
        at = [np.arange(n) - 1 for n in padded.shape]
        axes.contour(at[1], at[0], padded, [0.5], linewidths=1.7, **style)


def distribution(dice, path, theme=LIGHT):
    """How many cases have which Dice, a histogram, as the paper's figure 5.

    Args:
        dice: dict from the name of a set of predictions to its cases' Dice; MOST of them at most.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    from matplotlib.legend_handler import HandlerTuple

    figure = _figure(9, 3.8, theme)
    axes = figure.subplots()
    width, handles, labels = (BINS[1] - BINS[0]) * 0.86 / len(dice), [], []
    for index, (name, values) in enumerate(dice.items()):
        counts, _ = np.histogram(np.clip(values, 0, 1), BINS)
        left = BINS[:-1] + 0.07 * (BINS[1] - BINS[0]) + index * width
        bars = axes.bar(left, counts, width, align="edge", color=theme.series[index], hatch=HATCHES[index],
                        edgecolor=theme.face)  # fmt: skip
        handles.append((bars, axes.axvline(np.median(values), color=theme.text, linestyle=LINES[index], linewidth=1.4)))
        labels.append(_plain(f"{name}: median {np.median(values):.3f} of {len(values)} cases"))
    lowest = min(float(np.min(values)) for values in dice.values())
    axes.set(xlabel="Dice", ylabel="cases", xlim=(max(0.0, np.floor(lowest * 10 - 1) / 10), 1))
    axes.yaxis.get_major_locator().set_params(integer=True)
    _dress(axes, theme)
    _legend(
        figure, theme, handles=handles, labels=labels, ncols=min(2, len(dice)), handlelength=4,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )  # fmt: skip
    figure.savefig(path, dpi=DPI)


def differences(values, title, path, theme=LIGHT):
    """A bar for each case, in order of the difference.

    Args:
        values: dict from the case's name to the difference.
        title: what it is the difference of, above the picture.
        path: of the PNG.
        theme: LIGHT or DARK.
    """
    ordered = sorted(values, key=values.get)
    heights = np.array([values[name] for name in ordered])
    figure = _figure(9, 3.8, theme)
    axes = figure.subplots()
    for sign, (words, index) in {-1: ("lower", 1), 1: ("higher", 0)}.items():
        at = np.flatnonzero(np.sign(heights) == sign)
        if not at.size:
            continue
        axes.bar(at, heights[at], color=theme.series[index], hatch=HATCHES[index], edgecolor=theme.face,
                 label=f"{words} in {len(at)} cases")  # fmt: skip
    axes.axhline(0, color=theme.text, linewidth=0.8)
    axes.set(ylabel="difference", xticks=[])
    figure.suptitle(_plain(title), fontsize=11, color=theme.text)
    axes.margins(x=0.01)
    if len(ordered) <= NAMED:
        axes.set_xticks(range(len(ordered)), map(_plain, ordered), rotation=90)
    _dress(axes, theme)
    axes.tick_params(axis="x", labelsize=7)
    _legend(figure, theme, ncols=2)
    figure.savefig(path, dpi=DPI)
