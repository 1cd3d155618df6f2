"""Writes files whole or not at all, makes folders, and converts what JSON can't hold."""

import contextlib
import errno
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vnet_fast.errors import InputError

DEFAULT_REMEDY = "Make room or give permission"


@contextlib.contextmanager
def replacing(path: str | Path, keep: Path | None = None, follows: bool = False) -> Iterator[BinaryIO]:
    """Opens a new binary file that replaces `path` once it is complete.

    It is written beside its place, synced and renamed. If the block raises, `path` stays as it was and nothing
    is left behind.

    Args:
        path: in a folder that exists. A device, a FIFO or a link to one, and what this program prints to, such as
            `/dev/stdout`, are an OSError.
        keep: None, or a new name for the file that is replaced. For a moment there is only that one.
        follows: whether a link stays one, and the file that it leads to is replaced.
    """
    path = Path(path)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if _is_printed_to(path):
        # what is printed would go on into the file that was replaced
        raise OSError(errno.EINVAL, "this program prints to it", str(path))
    if follows:
        path = Path(os.path.realpath(path))
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # as of a full disk
            error.filename = str(path)
        raise


def _is_printed_to(path: Path) -> bool:
    """Whether a path leads to the file into which this program's output or errors are redirected."""
    for number in (1, 2):
        # one of them may be closed, and the path may be new
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(number)):
                return True
    return False


def _sync_folder(folder: Path) -> None:
    """Makes a renaming survive a loss of power, where folders can be synced."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_text(path: str | Path, text: str, remedy: str = DEFAULT_REMEDY, follows: bool = False) -> None:
    """Writes a text file, whole or not at all.

    Args:
        path: of the file.
        text: its content.
        remedy: what the user should do if it can't be written.
        follows: see `replacing`.

    Raises:
        InputError: if it can't be written.
    """
    try:
        with replacing(path, follows=follows) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", remedy) from None


def plain(value: Any) -> Any:
    """Converts a structure to what JSON can hold: keys become text, and numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_folder(path: str | Path, remedy: str = DEFAULT_REMEDY) -> Path:
    """Makes a folder and its parents, unless they exist.

    Args:
        path: of the folder.
        remedy: what the user should do if it can't be made.

    Returns:
        its Path.

    Raises:
        InputError: if it can't be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(path, f"can't be made ({error.strerror})", remedy) from None
    return path
