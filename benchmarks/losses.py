"""The paper's comparison: Dice loss against weighted cross-entropy, of two runs that differ in nothing else.

    python benchmarks/losses.py NAME RUN_A RUN_B

writes `results/losses/NAME.json`, with the runs' settings and the numbers of every case that they did not train
on, and the README's table of all such results.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance, without_folders  # noqa: E402
from benchmarks.report import ReportError, replaced  # noqa: E402
from vnet_fast.data import cases  # noqa: E402
from vnet_fast.errors import InputError, InputErrors  # noqa: E402
from vnet_fast.evaluation.comparison import compare_pairs  # noqa: E402
from vnet_fast.evaluation.evaluation import WHOLE, evaluate, summarise  # noqa: E402
from vnet_fast.evaluation.tables import mean_and_deviation, plain  # noqa: E402
from vnet_fast.files import write_text  # noqa: E402
from vnet_fast.reporting.subjects import LOSS_NAMES, read_subjects  # noqa: E402
from vnet_fast.run.configuration import Config  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "losses"
# of a run's own, or of the machine that it ran on
LEFT_OUT = {
    "output",
    "cache",
    "resume",
    "labels",
    "check",
    "tensorboard",
    "workers",
    "device",
    "val_every",
    "save_every",
}
METRICS = (("dice", "Dice", 4), ("hausdorff_95_mm", "HD95, mm", 2), ("average_boundary_distance_mm", "ABD, mm", 2))
HEADINGS = ("data", "loss", "cases", "Dice", "median Dice", "HD95, mm", "ABD, mm", "Dice less the other's (median), p")


def measured(runs):
    """What is stored of two runs.

    Raises:
        InputError: if they differ in more than the loss, or are not finished.
    """
    subjects = read_subjects(runs, "auto")
    settings = [{k: v for k, v in each.settings.items() if k not in LEFT_OUT} for each in subjects]
    different = sorted(name for name in settings[0] if settings[0][name] != settings[1].get(name))
    if different != ["loss"]:
        raise InputError(runs[1], f"differs from {runs[0]} in {', '.join(different)}", "Only the loss may differ")
    for each in subjects:
        if each.summary.get("iterations") != each.settings["iterations"]:
            raise InputError(each.folder, "is not finished", "Resume it")
    names = [each.settings["loss"] for each in subjects]
    evaluations = evaluate(names, [each.pairs for each in subjects], settings[0]["binary"])
    return {
        "command": command(subjects[0].settings),
        "about": provenance() | {"command": without_folders(" ".join(["python", *sys.argv]))},
        "runs": [
            {
                "loss": each.name,
                "training": _training(subject),
                "labels": summarise(each),
                "cases": each.cases,
            }
            for subject, each in zip(subjects, evaluations, strict=True)
        ],
        "comparisons": [vars(each) for each in compare_pairs(evaluations)],
    }


def _training(subject):
    """What a run, or the first fold of a cross-validation, was trained on."""
    first = subject.folder / "fold0" / "summary.json"
    summary = json.loads(first.read_text(encoding="utf-8")) if first.exists() else subject.summary
    return {name: summary[name] for name in ("iterations", "device", "precision")}


def command(settings):
    """The command of a run, without its loss and with the name of its data's folder alone."""
    words = ["python -m vnet_fast.train"]
    for field in dataclasses.fields(Config):
        value = settings.get(field.name)
        if field.name in LEFT_OUT | {"loss"} or value in (field.default, None, False):
            continue
        flag = "--" + field.name.replace("_", "-")
        value = Path(value).name if field.name == "data" else value
        words += [flag, *([] if value is True else map(str, value if isinstance(value, tuple) else [value]))]
    return " ".join(words)


def section(folder):
    """Markdown of all results in a folder."""
    parts = []
    for path in sorted(folder.glob("*.json"), key=lambda path: cases.natural(path.name)):
        content, rows = json.loads(path.read_text(encoding="utf-8")), []
        about, first = content["about"], content["runs"][0]
        for label in first["labels"]:
            rows += [_row(path.stem, content, run, label) for run in content["runs"]]
        lines = [f"| {' | '.join(HEADINGS)} |", "| --- | --- |" + " ---: |" * (len(HEADINGS) - 2), *rows]
        trained = first["training"]
        parts.append(
            f"`{content['command']}`, with `--loss dice` and `--loss weighted-ce`; {trained['iterations']} iterations "
            f"on {about['processor']}, {trained['device']}, {trained['precision']}, "
            f"torch {about['torch']}, {about['date']}:\n\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)


def _row(name, content, run, label):
    stored = run["labels"][label][WHOLE]
    cells = [mean_and_deviation(stored[metric], digits, len(run["cases"])) for metric, _, digits in METRICS]
    found = next(each for each in content["comparisons"] if (str(each["label"]), each["metric"]) == (label, "dice"))
    sign = -1 if run is content["runs"][0] else 1
    median = sign * statistics.median(found["differences"].values())
    shown = f"{name}, class {label}" if len(run["labels"]) > 1 else name
    cells = [shown, LOSS_NAMES[run["loss"]], str(len(run["cases"])), cells[0], f"{stored['dice']['median']:.4f}",
             *cells[1:], f"{median:+.4f}, {found['p_value']:.1g}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main():
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="of the data, for the table")
    parser.add_argument("runs", nargs=2, metavar="RUN", help="folder of a run")
    given = parser.parse_args()
    try:
        content = plain(measured(given.runs))
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / f"{given.name}.json", json.dumps(content, indent=1) + "\n")
        readme = ROOT / "README.md"
        text = replaced(readme.read_text(encoding="utf-8"), "losses", section(RESULTS))
        readme.write_text(text, encoding="utf-8")
    except (InputError, InputErrors, ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
