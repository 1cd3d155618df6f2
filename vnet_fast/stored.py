"""Reads stored files, which anyone may have changed since, and shows their values in messages."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

# of a file of settings or results, many times what a run writes
MAX_JSON_BYTES = 16 << 20
# of a value that a message shows
SHOWN_CHARACTERS = 60


def open_regular(path: str | Path, mode: str = "rb", **how: Any) -> IO[Any]:
    """Opens a file to read it, unless it is a FIFO, a socket or a device, which would wait for a writer.

    Args:
        path: of the file.
        mode: as of `open`.
        **how: further arguments of `open`.

    Raises:
        OSError: if it can't be opened, or is not a regular file.
    """
    kind = os.stat(path).st_mode
    # opening a folder is an error of its own
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, mode, **how)


def read_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it holds anything else.
    """
    value = _read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"must be an object; got {shown(value)}")
    return value


def read_list(path: str | Path) -> list[Any]:
    """The list in a JSON file; raises what `read_object` does."""
    value = _read_json(path)
    if not isinstance(value, list):
        raise ValueError(f"must be a list; got {shown(value)}")
    return value


def _read_json(path: str | Path) -> object:
    with open_regular(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"longer than {MAX_JSON_BYTES >> 20} MB")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, whose names must differ: `json` keeps the last of those that do not."""
    value: dict[str, object] = {}
    for name, content in pairs:
        if name in value:
            raise ValueError(f"an object has the key {shown(name)} twice")
        value[name] = content
    return value


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "not in UTF-8"
    text = getattr(error, "strerror", None) or str(error)
    # Python's own advice to lift the limit does not help here
    return "a number of too many digits" if "integer string conversion" in text else text


def shown(value: object) -> str:
    """A value for a message: a short one as it is, otherwise only its kind."""
    if isinstance(value, list | tuple) and len(value) <= 3 and not any(isinstance(v, list | tuple) for v in value):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, int) and abs(value) >= 10**SHOWN_CHARACTERS:
        return "a number of too many digits"
    if value is None or isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return f"a {type(value).__name__}"
