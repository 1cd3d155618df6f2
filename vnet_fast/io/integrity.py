"""Checks that a file is readable and complete.

Compressed data is unpacked to its end, so that its checksum is verified, but never beyond the length that the
header states.
"""

import gzip
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

from vnet_fast.errors import InputError

COPY_AGAIN = "Copy or export it again"
# bytes that are read at once
CHUNK = 1 << 20
# largest ratio of unpacked to packed bytes that the deflate format can reach
DEFLATE_RATIO = 1032
# zlib's window bits, for a stream with the header and checksum of zlib, or of gzip
ZLIB, GZIP = 15, 31


def check_regular(path: str | Path) -> None:
    """Raises an InputError unless `path` is a regular file that can be read and is not empty."""
    try:
        status = os.stat(path)
        # opening a FIFO would wait for a writer
        with open(path if stat.S_ISREG(status.st_mode) else os.devnull, "rb"):
            pass
    except FileNotFoundError:
        cause = "a link to a missing file" if os.path.islink(path) else "no such file"
        raise InputError(path, cause, "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "not a regular file", "Name the file of a volume")
    if status.st_size == 0:
        raise InputError(path, "an empty file", COPY_AGAIN)


def check_plain(path: Path, skip: int, expected: int, see: Callable[[bytes], object] | None = None) -> None:
    """Raises an InputError unless exactly `expected` bytes follow the first `skip` bytes of a file.

    Args:
        path: of the file.
        skip: bytes before the others.
        expected: their number.
        see: None, or called with these bytes, piece by piece.
    """
    _check_length(path, path.stat().st_size - skip, expected)
    if see is not None:
        with open(path, "rb") as file:
            file.seek(skip)
            while chunk := file.read(CHUNK):
                see(chunk)


def check_gzip(path: Path, skip: int, expected: int, see: Callable[[bytes], object] | None = None) -> None:
    """Does the same as `check_plain` for a file that is compressed as a whole; `skip` counts unpacked bytes."""
    _check_ratio(path, path.stat().st_size, skip + expected)
    total = -skip
    try:
        with gzip.open(path) as file:
            while total <= expected and (chunk := file.read(CHUNK)):
                if see is not None:
                    see(chunk[max(0, -total) :])
                total += len(chunk)
    except EOFError:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"damaged gzip data ({error})", COPY_AGAIN) from None
    _check_length(path, total, expected)


def check_deflated(path: Path, skip: int, expected: int, wrapper: int) -> None:
    """Does the same as `check_plain` for a file with one compressed stream after the first `skip` bytes.

    Args:
        path: of the file.
        skip: bytes before the stream.
        expected: unpacked bytes of the stream.
        wrapper: ZLIB or GZIP.
    """
    _check_ratio(path, path.stat().st_size - skip, expected)
    inflate, total = zlib.decompressobj(wrapper), 0
    try:
        with open(path, "rb") as file:
            file.seek(skip)
            while not inflate.eof and total <= expected:
                packed = inflate.unconsumed_tail or file.read(CHUNK)
                chunk = inflate.decompress(packed, CHUNK)
                total += len(chunk)
                if not packed and not chunk:
                    raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN)
            trailing = inflate.eof and (inflate.unused_data or file.read(1))
    except zlib.error as error:
        raise InputError(path, f"damaged compressed data ({error})", COPY_AGAIN) from None
    _check_length(path, total, expected)
    if trailing:
        raise InputError(path, "has extra bytes after its compressed data", COPY_AGAIN)


def _check_ratio(path: Path, packed: int, expected: int) -> None:
    if packed * DEFLATE_RATIO < expected:
        cause = f"truncated: {packed} compressed bytes can't hold the {expected} bytes that its header states"
        raise InputError(path, cause, COPY_AGAIN)


def _check_length(path: Path, total: int, expected: int) -> None:
    if total < expected:
        raise InputError(path, f"truncated: {total} bytes where its header states {expected}", COPY_AGAIN)
    if total > expected:
        raise InputError(path, f"longer than the {expected} bytes that its header states", COPY_AGAIN)
