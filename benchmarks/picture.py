"""Draws the time of a step by parts, for each provider and machine, and the time of a forward pass by provider."""

from benchmarks.parts import PARTS
from benchmarks.tables import shown

# Okabe and Ito's colours, which colour-blind readers can tell apart, and grey for idle time
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#000000", "#BBBBBB")
WIDTH, BAR, MARGIN = 10.0, 0.36, 1.1
OURS, OTHERS = "#0072B2", "#BBBBBB"


def draw(machines, path):
    """Draws one panel for each machine, with a stacked bar for each provider.

    Args:
        machines: list of (title, list of (provider, dict from part to milliseconds)).
        path: of the SVG.
    """
    plt = _pyplot()
    bars = [len(providers) for _, providers in machines]
    height = sum(BAR * count + MARGIN for count in bars) + 0.6
    figure, panels = plt.subplots(
        len(machines), 1, figsize=(WIDTH, height), squeeze=False, height_ratios=bars, layout="constrained"
    )
    for panel, (title, providers) in zip(panels[:, 0], machines, strict=True):
        _draw_panel(panel, title, providers)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_forward(title, times, path):
    """Draws a bar for the forward pass of each provider, the slowest first.

    Args:
        title: of the picture.
        times: dict from provider to milliseconds.
        path: of the SVG.
    """
    plt = _pyplot()
    names = sorted(times, key=lambda name: -times[name])
    figure, panel = plt.subplots(figsize=(WIDTH, BAR * len(names) + MARGIN), layout="constrained")
    colours = [OURS if name.startswith("vnet_fast") else OTHERS for name in names]
    panel.barh(names, [times[name] for name in names], color=colours, height=0.72)
    _finish(panel, [times[name] for name in names], title, "ms a volume")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("agg")
    # fixed, so that the same results make the same file
    matplotlib.rcParams.update({"svg.hashsalt": "step", "font.size": 9})
    from matplotlib import pyplot as plt

    return plt


def _draw_panel(panel, title, providers):
    names = [name for name, _ in providers]
    ends = [0.0] * len(names)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        widths = [parts.get(part, 0.0) for _, parts in providers]
        panel.barh(names, widths, left=ends, color=colour, label=part, height=0.72)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    _finish(panel, ends, title, "ms a step")


def _finish(panel, ends, title, unit):
    """Writes the lengths of bars beside them, and a title and a unit."""
    for row, end in enumerate(ends):
        panel.annotate(shown(end), (end, row), xytext=(4, 0), textcoords="offset points", va="center")
    panel.invert_yaxis()
    panel.margins(x=0.08)
    panel.set_xlim(left=0)
    panel.set_xlabel(unit)
    panel.set_title(title, loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
