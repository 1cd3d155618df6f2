"""Standard streams that are nothing to fail for: what can't be encoded is escaped, and closed ones swallow it."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# of a pipe whose reader has ended, of a closed stream, and of a terminal that is gone
CLOSED = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO)


class TolerantStream:
    """A text stream whose `write` and `flush` do not fail when it is closed or lacks a character.

    Args:
        stream: the stream; all else is passed on to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        with self._tolerance():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        with self._tolerance():
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _tolerance(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in CLOSED:
                error.filename = error.filename or getattr(self._stream, "name", None)
                raise
            self._discard()
        except ValueError:
            # the stream object is closed
            self._discard()

    def _discard(self) -> None:
        """Sends what is buffered and what follows nowhere, so that the interpreter's last flush does not fail."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Makes stdout and stderr tolerant while the block runs."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # or the next file that is opened would stand for it, and be written into; the lowest number is taken
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    # None stands for a stream that was closed when the interpreter started
    tolerant = [TolerantStream(stream or open(os.devnull, "w")) for stream in before]  # noqa: SIM115 - until the end
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in tolerant)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in tolerant:
            stream.flush()
