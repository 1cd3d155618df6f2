"""The tables and the picture of the results of `learning.py`."""

import itertools
import json
import statistics

from benchmarks import tables

# this project's learners are blue
OURS = "vnet_fast"
BLUES, COLOURS = ("#0072B2", "#56B4E9"), ("#D55E00", "#009E73", "#CC79A7", "#000000")
WIDTH, HEIGHT = 5.2, 3.8
# of the picture's Dice; what is below says only that a training has just begun
LOWEST = 0.5


def load(folder):
    """The results in a folder: dict from name to content, in the order of their names."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def comparisons(results):
    """Those of the results in which there are several learners."""
    return {name: content for name, content in results.items() if len(by_learner(content["runs"])) > 1}


def section(results):
    """Markdown of results.

    Args:
        results: returned by `load`.
    """
    paragraphs = []
    for content in results.values():
        lines = "\n".join(table(content["runs"]))
        paragraphs.append(f"{_caption(content)}\n\n{lines}\n")
    return "\n".join(paragraphs)


def highlights(results):
    """Markdown of the README: the Dice of each comparison.

    Args:
        results: returned by `load`.
    """
    paragraphs = []
    for name, content in comparisons(results).items():
        about, runs = content["about"], content["runs"]
        minutes = statistics.median(run["seconds"] for run in runs) / 60
        rows = [
            {"network": learner, "seeds": len(of_learner)}
            | {f"Dice, {region}": _over_seeds(of_learner, region, "dice", 3) for region in runs[0]["metrics"]}
            for learner, of_learner in by_learner(runs).items()
        ]
        several = any(row["seeds"] > 1 for row in rows)
        caption = (
            f"{name.capitalize()}, {cases_of(content)} cases that were not trained on, after about {minutes:.0f} "
            f"minutes of training on {about['processor']}, {about['device']}"
            f"{' (mean over the seeds, and their range)' if several else ''}:"
        )
        paragraphs.append("\n".join((caption, "", *tables.lines(rows))))
    return "\n\n".join(paragraphs) + "\n"


def cases_of(content):
    """How many cases a result was measured on."""
    return len(content["runs"][0]["metrics"]["whole"]["dice"])


def _caption(content):
    about = content["about"]
    return (
        f"`{about['command']}`: {cases_of(content)} cases that were not trained on, on {about['processor']}, "
        f"{about['device']}, torch {about['torch']}, {about['date']}. Dice on the files' own grids:"
    )


def table(runs):
    """Markdown lines: for each learner the mean over the seeds of each region's mean Dice, and their range."""
    regions = list(runs[0]["metrics"]) if runs else []
    headings = ["", "seeds", "seconds", "iterations", "precision", *regions, "HD95 of the whole, mm"]
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    for name, of_name in by_learner(runs).items():
        cells = [name, str(len(of_name))]
        cells += [f"{statistics.mean(run[key] for run in of_name):.0f}" for key in ("seconds", "iterations")]
        cells += [of_name[0]["precision"]]
        cells += [_over_seeds(of_name, region, "dice", 4) for region in regions]
        cells += [_over_seeds(of_name, "whole", "hausdorff_95_mm", 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ablation(results):
    """Markdown of results of `learning.py --ablation`: what each change of the fast recipe costs or gains.

    Args:
        results: returned by `load`.
    """
    paragraphs = []
    for content in results.values():
        learners = by_learner(content["runs"])
        unchanged, *_ = dice = {name: _regions(runs) for name, runs in learners.items()}
        regions = list(dice[unchanged])
        headings = ["", *regions, "difference of the regions' mean"]
        lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
        base = statistics.mean(dice[unchanged].values())
        for name, means in sorted(dice.items(), key=lambda item: -statistics.mean(item[1].values())):
            difference = "" if name == unchanged else f"{statistics.mean(means.values()) - base:+.4f}"
            cells = [name, *(f"{means[region]:.4f}" for region in regions), difference]
            lines.append(f"| {' | '.join(cells)} |")
        seeds = len(learners[unchanged])
        paragraphs.append(f"{_caption(content)[:-1]}, {seeds} seed{'' if seeds == 1 else 's'}:\n\n" + "\n".join(lines))
    return "\n\n".join(paragraphs) + "\n"


def _regions(runs):
    """Each region's mean Dice over cases and seeds."""
    return {
        region: statistics.mean(_mean(run["metrics"][region]["dice"]) for run in runs) for region in runs[0]["metrics"]
    }


def by_learner(runs):
    """Dict from a learner's name to its runs, one for each seed."""
    return {name: [run for run in runs if run["learner"] == name] for name in dict.fromkeys(r["learner"] for r in runs)}


def _over_seeds(runs, region, metric, digits):
    means = [_mean(run["metrics"][region][metric]) for run in runs]
    text = f"{statistics.mean(means):.{digits}f}"
    return text if len(means) == 1 else f"{text} ({min(means):.{digits}f}–{max(means):.{digits}f})"


def _mean(values):
    defined = [value for value in values if value is not None]
    return statistics.mean(defined) if defined else float("nan")


def curve(runs):
    """Seconds and Dice of each validation, the mean over runs of one learner.

    Args:
        runs: with curves of about the same length; what only some have is left out.

    Returns:
        list of (seconds, Dice, lowest Dice, highest Dice).
    """
    points = []
    for validations in zip(*(run["curve"] for run in runs), strict=False):
        seconds, dice = zip(*validations, strict=True)
        points.append((statistics.mean(seconds), statistics.mean(dice), min(dice), max(dice)))
    return points


def draw(results, path):
    """Draws the Dice of validations over the seconds of training, a panel for each comparison.

    Args:
        results: returned by `load`, at least one comparison.
        path: of the SVG.
    """
    import matplotlib

    results = comparisons(results)
    matplotlib.use("agg")
    # fixed, so that the same results make the same file
    matplotlib.rcParams.update({"svg.hashsalt": "learning", "font.size": 9})
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(run["learner"] for content in results.values() for run in content["runs"]))
    colours = dict(zip((name for name in names if name.startswith(OURS)), itertools.cycle(BLUES), strict=False))
    colours |= zip((name for name in names if name not in colours), itertools.cycle(COLOURS), strict=False)
    figure, panels = plt.subplots(
        1, len(results), figsize=(WIDTH * len(results), HEIGHT), squeeze=False, layout="constrained"
    )
    for panel, (title, content) in zip(panels[0], results.items(), strict=True):
        _draw_panel(panel, title, by_learner(content["runs"]), colours)
    handles = {line.get_label(): line for panel in panels[0] for line in panel.get_lines()}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_panel(panel, title, learners, colours):
    for name, runs in learners.items():
        seconds, dice, lowest, highest = zip(*curve(runs), strict=True)
        style = "solid" if name.startswith(OURS) else "dashed"
        panel.plot(seconds, dice, linestyle=style, color=colours[name], label=name, marker=".", linewidth=1.4)
        panel.fill_between(seconds, lowest, highest, color=colours[name], alpha=0.15, linewidth=0)
    panel.set_ylim(bottom=max(LOWEST, panel.get_ylim()[0]))
    panel.set_xlim(left=0)
    panel.set_xlabel("seconds of training")
    panel.set_ylabel("Dice of cases not trained on")
    panel.set_title(title, loc="left", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.3)
