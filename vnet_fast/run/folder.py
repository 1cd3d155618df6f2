"""The folder of a training run: which files it holds, who may train in it, and its last checkpoint."""

import contextlib
import json
import os
import shlex
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, write_text
from vnet_fast.nn.vnet import VNet
from vnet_fast.progress import note, say
from vnet_fast.run import checkpoint, fields
from vnet_fast.run.configuration import CONFIG_FILE, Config, stored_config
from vnet_fast.run.fields import wrong_field
from vnet_fast.run.fold_options import ALL
from vnet_fast.stored import open_regular, read_object, reason

# checkpoints
LAST, PREVIOUS, BEST, UNREADABLE = "last.pt", "previous.pt", "best.pt", "unreadable.pt"
# what was measured, and the pictures of it
LOG, SUMMARY, CURVES, OVERLAY, TENSORBOARD = "log.csv", "summary.json", "curves.png", "overlay.png", "tensorboard"
# there while a process trains in the folder: the lock, and the number of the process
LOCK, PROCESS = "lock", "process"
MAX_DIGITS = 20
ANOTHER_OUTPUT = "Choose another --output"


def fold_folder(run: str | Path, fold: int) -> Path:
    """The folder of one fold's run inside the folder of a cross-validation."""
    return Path(run) / f"fold{fold}"


def resume_hint(path: str | Path) -> str:
    """How to resume the run in a folder, as a command that a shell takes."""
    return f"Resume with: python -m vnet_fast.train --resume {shlex.quote(str(path))}"


def holds_run(path: str | Path) -> bool:
    """Whether a run has been started in a folder."""
    return any((Path(path) / name).exists() for name in (LAST, PREVIOUS))


def best_checkpoints(path: str | Path) -> list[Path]:
    """`best.pt` of the run in a folder, or of each fold of a cross-validation.

    Raises:
        InputError: if it is no run's folder, or a run has none yet.
    """
    path, config = Path(path), stored_config(path)
    folders = [path] if config.fold != ALL else [fold_folder(path, fold) for fold in range(config.folds)]
    for folder in folders:
        if not (folder / BEST).exists():
            raise InputError(folder, f"has no {BEST} yet", resume_hint(path))
    return [folder / BEST for folder in folders]


def _check_files(path: Path) -> None:
    """Raises an InputError if a new run would replace a file that is of no run."""
    for name, is_own in ((CONFIG_FILE, _is_config), (LOG, _is_log)):
        file = path / name
        if file.exists() and not is_own(file):
            raise InputError(file, "is of no run, and would be replaced", ANOTHER_OUTPUT)


def _is_config(file: Path) -> bool:
    try:
        return "learning_rate" in read_object(file)
    except (OSError, ValueError):
        return False


def _is_log(file: Path) -> bool:
    try:
        with open_regular(file) as stream:
            return stream.readline(80).startswith(b"iteration,") or not file.stat().st_size
    except OSError:
        return False


def write_config(path: str | Path, config: Config) -> None:
    """Writes the settings of a run into its folder; an `InputError` if that fails."""
    content = {**asdict(config), "resume": None}
    write_text(Path(path) / CONFIG_FILE, json.dumps(content, indent=2) + "\n", ANOTHER_OUTPUT)


def write_summary(path: str | Path, summary: dict[str, Any]) -> None:
    """Writes the result of a run into its folder; an `InputError` if that fails."""
    write_text(Path(path) / SUMMARY, json.dumps(summary, indent=2) + "\n")


def read_summary(path: str | Path) -> dict[str, Any]:
    """The result in the folder of a finished run.

    Raises:
        InputError: if there is none, or the file is damaged.
    """
    file = Path(path) / SUMMARY
    if not file.exists():
        raise InputError(path, f"has no {SUMMARY}: the run is not finished", resume_hint(path))
    try:
        summary = read_object(file)
        wrong = wrong_field(summary, fields.SUMMARY)
    except (OSError, ValueError) as error:
        wrong = reason(error)
    if wrong:
        raise InputError(file, f"not a run's result ({wrong})", "Delete it, and resume that run to write it again")
    return summary


def finished_at(path: str | Path) -> int | None:
    """The iteration at which the run in a folder was finished, or None if it is not finished."""
    try:
        return read_summary(path).get("iterations")
    except InputError:
        return None


def has_ended(path: str | Path, iterations: int, patience: int | None) -> bool:
    """Whether the run in a folder is finished, with these settings."""
    try:
        summary = read_summary(path)
    except InputError:
        return False
    without_gain = summary.get("validations_without_gain", 0)
    return summary.get("iterations") == iterations or (patience is not None and without_gain >= patience)


def is_measured(path: str | Path) -> bool:
    """Whether the result in a folder has the Dice of the masks that the run predicted at its end."""
    try:
        return read_summary(path).get("val_dice_per_case_and_class") is not None
    except InputError:
        return False


class RunFolder:
    """The folder of a run, created if needed and locked until `close`.

    Args:
        path: of the folder.
        resume: whether a run in it is resumed; otherwise there must be none.

    Raises:
        InputError: if it can't be written, holds a run already, or another process trains in it.
    """

    def __init__(self, path: str | Path, resume: bool = False) -> None:
        self.path = Path(path)
        if not resume and (
            holds_run(self.path) or (self.path / BEST).exists() or any(map(holds_run, self.path.glob("fold*")))
        ):
            raise InputError(self.path, "holds a run already", f"{ANOTHER_OUTPUT}, or --resume it")
        if not resume:
            _check_files(self.path)
        make_folder(self.path, ANOTHER_OUTPUT)
        try:
            self._lock: FileLock | None = self._acquire_lock()
            self._delete_unfinished_checkpoints()
        except OSError as error:
            raise InputError(self.path, f"can't be written ({error.strerror})", ANOTHER_OUTPUT) from None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def _acquire_lock(self) -> FileLock:
        lock = FileLock(self.path / LOCK)
        try:
            with warnings.catch_warnings():
                # where the file system has no locks, a file stands in for one
                warnings.filterwarnings("ignore", message="flock not supported")
                lock.acquire(blocking=False)
        except Timeout:
            cause = f"process {self._read_process() or 'unknown'} is training in it"
            raise InputError(self.path, cause, "Wait for its end, or choose another --output") from None
        killed = self._read_process()
        if killed:
            say(f"{self.path}: process {killed}, which trained in it, has ended; its lock is taken over")
        # replaced, because writing to a FIFO of this name would wait for a reader
        (self.path / PROCESS).unlink(missing_ok=True)
        (self.path / PROCESS).write_text(str(os.getpid()))
        return lock

    def _read_process(self) -> str:
        with contextlib.suppress(OSError), open_regular(self.path / PROCESS) as file:
            # the number of a process, unless the file is another program's
            return str(file.read(MAX_DIGITS), "ascii", "replace").strip()
        return ""

    def _delete_unfinished_checkpoints(self) -> None:
        """Deletes what a killed process was writing."""
        for name in (LAST, BEST, CONFIG_FILE, LOG, SUMMARY):
            for file in self.path.glob(f".{name}-*"):
                file.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets other processes train in the folder."""
        if self._lock is None:
            return
        # deleted while it is held: who waits for the old file notices and opens a new one
        for name in (PROCESS, LOCK):
            (self.path / name).unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def set_last_aside(self) -> None:
        """Renames a `last.pt` that can't be read, so that it never replaces `previous.pt`.

        It is kept, because it may be sound: this process may lack permission, or be an older version.
        """
        if (self.path / LAST).exists():
            os.replace(self.path / LAST, self.path / UNREADABLE)

    def save_last(self, model: VNet, **state: Any) -> None:
        """Writes `last.pt`; the checkpoint before it becomes `previous.pt`."""
        checkpoint.save(self.path / LAST, model, keep=self.path / PREVIOUS, **state)

    @staticmethod
    def load_last(path: str | Path, device: torch.device) -> tuple[dict[str, Any], Path]:
        """The last checkpoint in a folder that can be read.

        Returns:
            its content and its path.

        Raises:
            InputError: if there is none; the message is about `last.pt`.
        """
        last, previous = Path(path) / LAST, Path(path) / PREVIOUS
        try:
            return checkpoint.load(last, device), last
        except InputError as error:
            try:
                content = checkpoint.load(previous, device)
            except InputError:
                raise error from None
            note(f"{last}: {error.cause}; going on from {PREVIOUS}")
            return content, previous
