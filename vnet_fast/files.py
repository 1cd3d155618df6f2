"""Files that are whole or not there, and folders."""

import contextlib
import os
import secrets
from pathlib import Path

from vnet_fast.errors import InputError


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


def write_text(path, text, remedy="Make room or give permission"):
    """Writes a text file, whole or not at all.

    Raises:
        InputError: if it can't be written; `remedy` is what to do.
    """
    try:
        with replacing(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", remedy) from None


def make_folder(path, remedy="Make room or give permission"):
    """Makes a folder, and those above it, if it is not there.

    Returns:
        its Path.

    Raises:
        InputError: if it can't be made; `remedy` is what to do.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(path, f"can't be made ({error.strerror})", remedy) from None
    return path
