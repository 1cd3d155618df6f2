"""Reads the runs of a report, and predicts their held-out cases."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vnet_fast.data.cases import natural
from vnet_fast.errors import InputError
from vnet_fast.evaluation.evaluation import Pair, names_of
from vnet_fast.io.formats import files_of
from vnet_fast.prediction.held_out import HeldOut, held_out
from vnet_fast.run.configuration import stored_config
from vnet_fast.run.folder import LOG, read_summary
from vnet_fast.run.log import LogRow, read_log

LOSS_NAMES = {"dice": "Dice loss", "weighted-ce": "weighted cross-entropy", "dice-ce": "Dice + cross-entropy"}


@dataclass(frozen=True)
class Subject:
    """A run in a report.

    Args:
        name: the name of its folder, and its loss.
        folder: its path.
        settings: the content of its `config.json`.
        summary: the content of its `summary.json`; empty while the run is not finished.
        cases: those that the run did not train on, with predictions.
        logs: dict from "", or from the name of a fold of a cross-validation, to the rows of its log.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    cases: list[HeldOut]
    logs: dict[str, list[LogRow]]

    @property
    def pairs(self) -> list[Pair]:
        """Name, prediction and reference of each case."""
        return [(case.name, case.prediction, case.reference) for case in self.cases]


def read_subjects(runs: Sequence[str | Path], device: str, probabilities: bool = False) -> list[Subject]:
    """Reads runs, and predicts those of their held-out cases that have no prediction yet.

    Args:
        runs: folders of runs.
        device: to predict on: `auto`, `cpu` or `cuda`.
        probabilities: whether the probabilities are to be beside the predicted masks.

    Raises:
        InputError: if a folder is not a run's, or the runs can't be reported together.
        InputErrors: for all cases that can't be predicted.
    """
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise InputError("--run", "names a run twice", "Name each run once")
    settings = [asdict(stored_config(run)) for run in runs]
    for run, others in zip(runs[1:], settings[1:], strict=True):
        if others["binary"] != settings[0]["binary"]:
            cause = f"one of this run and {runs[0]} has --binary and the other has not"
            raise InputError(run, cause, "Report them one by one")
        for name in ("regions", "ignore_label"):
            if others[name] != settings[0][name]:
                cause = f"has another --{name.replace('_', '-')} than {runs[0]}"
                raise InputError(run, cause, "Report them one by one")
    subjects = [
        _read_subject(Path(run), f"{name} ({LOSS_NAMES[stored['loss']]})", stored, device, probabilities)
        for run, name, stored in zip(runs, names_of(runs), settings, strict=True)
    ]
    for other in subjects[1:]:
        if _hash_references(other) != _hash_references(subjects[0]):
            cause = f"held out other cases than {subjects[0].folder}"
            raise InputError(other.folder, cause, "Report them one by one, or runs of one fold of the same data")
    return subjects


def _hash_references(subject: Subject) -> dict[str, str]:
    """A digest of each case's reference mask, because runs on phantoms have the same masks in different files."""
    digests = {}
    for case in subject.cases:
        digest = hashlib.sha256()
        for path in files_of(case.reference):
            digest.update(path.read_bytes())
        digests[case.name] = digest.hexdigest()
    return digests


def _read_subject(folder: Path, name: str, settings: dict[str, Any], device: str, probabilities: bool) -> Subject:
    try:
        summary = read_summary(folder)
    except InputError:
        # not finished
        summary = {}
    logs = {"": folder / LOG}
    folds = sorted(folder.glob(f"fold*/{LOG}"), key=natural)
    logs |= {path.parent.name.replace("fold", "fold "): path for path in folds}
    rows_by_log = {log_name: read_log(path) for log_name, path in logs.items() if path.exists()}
    with_rows = {log_name: rows for log_name, rows in rows_by_log.items() if rows}
    return Subject(name, folder, settings, summary, held_out(folder, device, probabilities=probabilities), with_rows)
