"""The paper's comparison of Dice loss and weighted cross-entropy, from two runs that differ in the loss alone.

    python benchmarks/losses.py NAME RUN_A RUN_B

stores the runs' settings and the numbers of every case that they did not train on in `results/losses/NAME.json`,
and writes the tables of all results as `report.py` does.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import report  # noqa: E402
from benchmarks.provenance import provenance, without_folders  # noqa: E402
from benchmarks.stored import ReportError  # noqa: E402
from vnet_fast.errors import InputError, InputErrors  # noqa: E402
from vnet_fast.evaluation.comparison import compare_pairs  # noqa: E402
from vnet_fast.evaluation.evaluation import evaluate  # noqa: E402
from vnet_fast.evaluation.summary import summarise  # noqa: E402
from vnet_fast.files import plain, write_text  # noqa: E402
from vnet_fast.reporting.subjects import read_subjects  # noqa: E402
from vnet_fast.run.configuration import Config  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "losses"
# settings in which two runs may differ, because they do not change the result
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


def compare(runs):
    """The contents of the result of two runs.

    Raises:
        InputError: if the runs differ in more than the loss, or are not finished.
    """
    subjects = read_subjects(runs, "auto")
    settings = [
        {name: value for name, value in subject.settings.items() if name not in LEFT_OUT} for subject in subjects
    ]
    different = sorted(name for name in settings[0] if settings[0][name] != settings[1].get(name))
    if different != ["loss"]:
        raise InputError(runs[1], f"differs from {runs[0]} in {', '.join(different)}", "Only the loss may differ")
    for subject in subjects:
        if subject.summary.get("iterations") != subject.settings["iterations"]:
            raise InputError(subject.folder, "is not finished", "Resume it")
    losses = [subject.settings["loss"] for subject in subjects]
    evaluations = evaluate(losses, [subject.pairs for subject in subjects], settings[0]["binary"])
    return {
        "command": command(subjects[0].settings),
        "about": provenance() | {"command": without_folders(" ".join(["python", *sys.argv]))},
        "runs": [
            {
                "loss": evaluation.name,
                "training": _training(subject),
                "labels": summarise(evaluation),
                "cases": evaluation.cases,
            }
            for subject, evaluation in zip(subjects, evaluations, strict=True)
        ],
        "comparisons": [vars(comparison) for comparison in compare_pairs(evaluations)],
    }


def _training(subject):
    """Iterations, device and precision of a run, or of the first fold of a cross-validation."""
    first_fold = subject.folder / "fold0" / "summary.json"
    summary = json.loads(first_fold.read_text(encoding="utf-8")) if first_fold.exists() else subject.summary
    return {name: summary[name] for name in ("iterations", "device", "precision")}


def command(settings):
    """The command of a run without its loss, and with only the name of the folder of its data."""
    arguments = ["python -m vnet_fast.train"]
    for field in dataclasses.fields(Config):
        value = settings.get(field.name)
        if field.name in LEFT_OUT | {"loss"} or value in (field.default, None, False):
            continue
        value = Path(value).name if field.name == "data" else value
        values = value if isinstance(value, tuple) else [value]
        arguments += ["--" + field.name.replace("_", "-"), *([] if value is True else map(str, values))]
    return " ".join(arguments)


def main():
    """Stores a result and writes the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", help="name of the data in the table")
    parser.add_argument("runs", nargs=2, metavar="RUN", help="folder of a run")
    arguments = parser.parse_args()
    try:
        content = plain(compare(arguments.runs))
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / f"{arguments.name}.json", json.dumps(content, indent=1) + "\n")
        report.write(ROOT)
    except (InputError, InputErrors, ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
