"""Files that are whole or not there."""

import contextlib
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def replacing(path, keep=None):
    """A new binary file that takes the place of `path` once it is whole: written beside it, synced,
    renamed. If the block raises, `path` stays as it was and nothing is left.

    Args:
        path: in a folder that exists.
        keep: None, or what the file before is renamed to; in the moment between, only that is there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder):
    """Makes the renaming last through a loss of power, where folders can be synced."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_text(path, text):
    """Writes a text file by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
