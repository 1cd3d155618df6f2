"""Makes one HTML page of training runs: curves, metrics, cases, pictures."""

import csv
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vnet_fast import command_line, plotting
from vnet_fast.command_line import option, path_text
from vnet_fast.data.cases import natural
from vnet_fast.devices import keep_freed_memory, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.evaluation.comparison import compare_pairs, require_scipy
from vnet_fast.evaluation.evaluation import evaluate, names_of
from vnet_fast.evaluation.figures import made_folder
from vnet_fast.evaluation.score import read_observer
from vnet_fast.files import write_text
from vnet_fast.io.formats import files_of
from vnet_fast.prediction.held_out import held_out
from vnet_fast.reporting import sections as report_sections
from vnet_fast.reporting.html import page
from vnet_fast.run.configuration import find_device, stored_config
from vnet_fast.versions import versions

LOSS_WORDS = {"dice": "Dice loss", "weighted-ce": "weighted cross-entropy"}
PAGE = "report.html"


@dataclass(frozen=True)
class Config:
    """One HTML page of one or several runs, which needs no network: training curves, the metrics of the
    cases that a run did not train on, their distribution, and the best, median and worst of them. Given
    two runs, the same slices of both."""

    run: tuple = option(
        None, "folder of a run or of a cross-validation; again for each further one", action="append", type=path_text,
        metavar="RUN", required=True,
    )  # fmt: skip
    output: str = option(None, "folder of the page and its pictures (default: report/ in the first run's folder)",
                         type=path_text, metavar="DIR")  # fmt: skip
    regions: bool = option(
        False, "also of base and apex, the cranial and caudal thirds of the reference's slices", action="store_true"
    )
    observer: str = option(
        None, "TOML file of a second observer's means, for the challenge's score", type=path_text, metavar="FILE"
    )
    device: str = option("auto", "where the cases are predicted", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Subject:
    """A run that is reported.

    Args:
        name: its folder's, and its loss.
        folder: its path.
        settings: of its `config.json`, a dict.
        summary: of its `summary.json`; empty while it is not finished.
        cases: list of `held_out.HeldOut`.
        logs: dict from words to the path of a `log.csv`, of each fold of a cross-validation.
    """

    name: str
    folder: Path
    settings: dict
    summary: dict
    cases: list
    logs: dict

    @property
    def pairs(self):
        """(name, prediction, reference) of each case."""
        return [(case.name, case.prediction, case.reference) for case in self.cases]


def read_subjects(runs, device):
    """The runs with their predictions, which are made where they are not there.

    Args:
        runs: folders.
        device: where.

    Raises:
        InputError: if one is no run, or they can't be reported together.
    """
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise InputError("--run", "names a run twice", "Name each once")
    settings = [asdict(stored_config(run)) for run in runs]
    for run, each in zip(runs[1:], settings[1:], strict=True):
        if each["binary"] != settings[0]["binary"]:
            cause = f"one of it and {runs[0]} has --binary and the other has not"
            raise InputError(run, cause, "Report them one by one")
    subjects = [
        _read(Path(run), f"{name} ({LOSS_WORDS[each['loss']]})", each, device)
        for run, name, each in zip(runs, names_of(runs), settings, strict=True)
    ]
    for other in subjects[1:]:
        if _references(other) != _references(subjects[0]):
            cause = f"held out other cases than {subjects[0].folder}"
            raise InputError(other.folder, cause, "Report them one by one, or runs of one fold of the same data")
    return subjects


def _references(subject):
    """What the references of a run's cases are: phantoms of several runs are files of their own."""
    found = {}
    for case in subject.cases:
        digest = hashlib.sha256()
        for path in files_of(case.reference):
            digest.update(path.read_bytes())
        found[case.name] = digest.hexdigest()
    return found


def _read(folder, name, settings, device):
    try:
        summary = dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        summary = {}
    logs = {"": folder / "log.csv"}
    folds = sorted(folder.glob("fold*/log.csv"), key=natural)
    logs |= {path.parent.name.replace("fold", "fold "): path for path in folds}
    logs = {words: path for words, path in logs.items() if _has_rows(path)}
    return Subject(name, folder, settings, summary, held_out(folder, device), logs)


def _has_rows(log):
    """Whether there is a log with iterations in it; an `InputError` if it is damaged."""
    if not log.exists():
        return False
    try:
        return bool(plotting.read_log(log))
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(log, f"not a log ({error})", "Take it away to report without it") from None


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    if not plotting.available():
        raise InputError("report", "matplotlib is not installed", "pip install 'vnet_fast[report]'")
    if len(config.run) > 1:
        require_scipy("--run")
    if len(config.run) > plotting.MOST:
        raise InputError("--run", f"given {len(config.run)} times, {plotting.MOST} at most", "Report fewer together")
    observer = read_observer(config.observer) if config.observer else None
    find_device(config.device)
    subjects = read_subjects(config.run, config.device)
    folder = made_folder(config.output or Path(config.run[0]) / "report", "--output")
    names, pairs = [each.name for each in subjects], [each.pairs for each in subjects]
    evaluations = evaluate(names, pairs, subjects[0].settings["binary"], config.regions, observer)
    comparisons = compare_pairs(evaluations) if len(evaluations) > 1 else []
    sections = report_sections.sections(subjects, evaluations, comparisons, folder)
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    title = "V-Net: " + " and ".join(each.name for each in subjects)
    write_text(folder / PAGE, page(title, f"Made with {made_with}.", sections))
    print(f"report: {folder / PAGE}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.report"))
