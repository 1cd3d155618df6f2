"""Files that are whole or not there."""

import contextlib
import os
import secrets
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A new binary file that takes the place of `path` once it is whole: written beside it, synced,
    renamed. If the block raises, `path` stays as it was and nothing is left.

    Args:
        path: in a folder that exists.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """Writes a text file by `replacing`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
