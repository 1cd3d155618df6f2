"""The runs that are reported, with their predictions."""

import csv
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vnet_fast.data.cases import natural
from vnet_fast.errors import InputError
from vnet_fast.evaluation.evaluation import names_of
from vnet_fast.io.formats import files_of
from vnet_fast.prediction.held_out import held_out
from vnet_fast.run.configuration import stored_config
from vnet_fast.run.log import read_log

LOSS_NAMES = {"dice": "Dice loss", "weighted-ce": "weighted cross-entropy"}


@dataclass(frozen=True)
class Subject:
    """A run that is reported.

    Args:
        name: its folder's, and its loss.
        folder: its path.
        settings: of its `config.json`, a dict.
        summary: of its `summary.json`; empty while it is not finished.
        cases: list of `held_out.HeldOut`.
        logs: dict from a name to what `read_log` returned, of each fold of a cross-validation.
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
        _read(Path(run), f"{name} ({LOSS_NAMES[each['loss']]})", each, device)
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
    logs = {words: rows for words, path in logs.items() if (rows := _rows_of(path))}
    return Subject(name, folder, settings, summary, held_out(folder, device), logs)


def _rows_of(log):
    """The rows of a log, none if there is no log; an `InputError` if it is damaged."""
    if not log.exists():
        return []
    try:
        return read_log(log)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(log, f"not a log ({error})", "Take it away to report without it") from None
