"""Whether a file is there and whole: regular, readable, as long as its header says. Compressed data
is unpacked to the end, so that checksums count, but never further than the header says.
"""

import gzip
import os
import stat
import zlib

from vnet_fast.errors import InputError

COPY_AGAIN = "Copy or export it again"
CHUNK = 1 << 20
# deflate packs at most this many bytes into one
DEFLATE_RATIO = 1032
# zlib's window bits: with the header and the checksum of zlib, or of gzip
ZLIB, GZIP = 15, 31


def check_regular(path):
    """Makes sure that `path` is a regular file that can be read and is not empty."""
    try:
        status = os.stat(path)
        # a FIFO would wait for a writer
        with open(path if stat.S_ISREG(status.st_mode) else os.devnull, "rb"):
            pass
    except FileNotFoundError:
        cause = "a link to a file that is not there" if os.path.islink(path) else "no such file"
        raise InputError(path, cause, "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "not a regular file", "Name a volume's file")
    if status.st_size == 0:
        raise InputError(path, "an empty file", COPY_AGAIN)


def check_plain(path, skip, expected):
    """Makes sure that `expected` bytes and no more follow the first `skip` of a file."""
    _check_length(path, path.stat().st_size - skip, expected)


def check_gzip(path, skip, expected):
    """As `check_plain` for a file that is compressed as a whole; `skip` counts unpacked bytes."""
    _check_ratio(path, path.stat().st_size, skip + expected)
    total = -skip
    try:
        with gzip.open(path) as file:
            while total <= expected and (chunk := file.read(CHUNK)):
                total += len(chunk)
    except EOFError:
        raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"damaged gzip data ({error})", COPY_AGAIN) from None
    _check_length(path, total, expected)


def check_deflated(path, skip, expected, wrapper):
    """As `check_plain` for a file whose bytes after the first `skip` are one compressed stream.

    Args:
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
        raise InputError(path, "longer than its compressed data", COPY_AGAIN)


def _check_ratio(path, packed, expected):
    if packed * DEFLATE_RATIO < expected:
        cause = f"truncated: {packed} compressed bytes can't be the {expected} that its header says"
        raise InputError(path, cause, COPY_AGAIN)


def _check_length(path, total, expected):
    if total < expected:
        raise InputError(path, f"truncated: {total} bytes where its header says {expected}", COPY_AGAIN)
    if total > expected:
        raise InputError(path, f"longer than the {expected} bytes that its header says", COPY_AGAIN)
