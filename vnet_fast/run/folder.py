"""The folder of a training run: held by one process at a time, its last checkpoint never lost."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.run import checkpoint

try:
    import fcntl
except ImportError:
    # no such locks on Windows
    fcntl = None

LAST, PREVIOUS, BEST, UNREADABLE = "last.pt", "previous.pt", "best.pt", "unreadable.pt"
RESUME_HINT = "Resume with: python -m vnet_fast.train --resume"


def fold_folder(run, fold):
    """The folder of one fold's run in a cross-validation's."""
    return Path(run) / f"fold{fold}"


def holds_run(path):
    """Whether a run has been begun in a folder."""
    return any((Path(path) / name).exists() for name in (LAST, PREVIOUS))


def finished_at(path):
    """The iteration at which the run in a folder was finished, or None."""
    try:
        return json.loads((Path(path) / "summary.json").read_text(encoding="utf-8"))["iterations"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_config(path, config):
    """Keeps the settings of a run in its folder's `config.json`."""
    write_text(
        Path(path) / "config.json",
        json.dumps({**asdict(config), "resume": None}, indent=2) + "\n",
        "Choose another --output",
    )


class RunFolder:
    """A run's folder, made if it is not there and locked until `close`.

    Args:
        path: of the folder.
        resume: whether a run in it goes on; else there must be none.

    Raises:
        InputError: if it can't be written, holds a run already, or another process trains in it.
    """

    def __init__(self, path, resume=False):
        self.path = Path(path)
        if not resume and (holds_run(self.path) or any(map(holds_run, self.path.glob("fold*")))):
            raise InputError(self.path, "holds a run already", "Choose another --output, or --resume it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            # what a process that was killed was writing
            for left in self.path.glob(f".{LAST}-*"), self.path.glob(f".{BEST}-*"):
                for file in left:
                    file.unlink(missing_ok=True)
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.path, cause, "Choose another --output") from None

    def __truediv__(self, name):
        return self.path / name

    def __str__(self):
        return str(self.path)

    def _locked(self):
        while True:
            file = open(self.path / "lock", "a+")  # noqa: SIM115 - closed by close()
            if fcntl is None:
                return file
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                cause = f"process {_process_in(file)} is training in it"
                raise InputError(self.path, cause, "Wait for its end, or choose another --output") from None
            except OSError:
                print(f"{self.path}: its file system has no locks; let no other process train in it")
                return file
            # the process that held it may have taken the file away between
            if _is_file(file, self.path / "lock"):
                break
            file.close()
        ended = _process_in(file)
        if ended:
            print(f"{self.path}: process {ended}, which trained in it, has ended; its lock is taken over")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def close(self):
        """Lets other processes train in it."""
        if self._lock is not None:
            (self.path / "lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def set_last_aside(self):
        """Renames a `last.pt` that can't be read, so that it never takes the place of `previous.pt`.

        It is kept: what this process can't read, by permission or of a newer program, may be sound.
        """
        if (self.path / LAST).exists():
            os.replace(self.path / LAST, self.path / UNREADABLE)

    def save_last(self, model, **state):
        """Writes `last.pt`; the one before becomes `previous.pt`."""
        checkpoint.save(self.path / LAST, model, keep=self.path / PREVIOUS, **state)

    @staticmethod
    def load_last(path, device):
        """The last checkpoint that can be read in a folder.

        Returns:
            its content and its path.

        Raises:
            InputError: if there is none; what is said is of `last.pt`.
        """
        last, previous = Path(path) / LAST, Path(path) / PREVIOUS
        try:
            return checkpoint.load(last, device), last
        except InputError as error:
            try:
                content = checkpoint.load(previous, device)
            except InputError:
                raise error from None
            print(f"{last}: {error.cause}; going on from {PREVIOUS}")
            return content, previous


def _process_in(file):
    file.seek(0)
    return file.read().strip()


def _is_file(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
