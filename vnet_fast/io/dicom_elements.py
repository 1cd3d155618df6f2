"""pydicom, which is imported when it is needed, with errors that name the file and the cause."""

import contextlib
import importlib
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_meta import TRANSFER_SYNTAX, read_meta
from vnet_fast.io.integrity import CHUNK, COPY_AGAIN, check_regular

INSTALL = "pip install 'vnet_fast[dicom]'"
DECODE = "Decompress it, for example with gdcmconv --raw"
# the transfer syntax in which all elements are one deflated stream, without zlib's header
DEFLATED, RAW_DEFLATE = "1.2.840.10008.1.2.1.99", -15
# of a file, inflated
MAX_INFLATED = 1 << 30
# what pydicom may raise about a damaged file
DAMAGE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError,
    RuntimeError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
# held while pydicom or highdicom work, because their warnings are silenced for the whole process
_LOCK = threading.Lock()


def check_installed(subject: object, *packages: str, of: str = "DICOM Segmentations") -> None:
    """Raises an InputError about a file or an option that needs a package which is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(subject, f"{of} need {package}, which is not installed", INSTALL) from None


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """Lets one thread at a time use pydicom, without its warnings."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Reads with pydicom `silently`; what it raises becomes an InputError."""
    try:
        with silently():
            yield
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror or error})", COPY_AGAIN) from None
    except Exception as error:
        # pydicom has some of its own, which are not known before it is imported
        if not isinstance(error, DAMAGE) and not type(error).__module__.startswith("pydicom."):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(path, f"damaged DICOM file ({reason})", COPY_AGAIN) from None


def read_elements(path: Path, **how: Any) -> Any:
    """Reads the elements of a DICOM file.

    Args:
        path: of the file.
        **how: further arguments of pydicom's `dcmread`.

    Returns:
        pydicom's Dataset; reading a value of it may raise DAMAGE, so that it belongs under `reading`.

    Raises:
        InputError: if pydicom is not installed, or can't read the file.
    """
    check_regular(path)
    # its folder, so that many files give one line
    check_installed(path.parent, "pydicom")
    import pydicom

    meta, head = read_meta(path)
    if meta.get(TRANSFER_SYNTAX) == DEFLATED:
        _check_inflated(path, head)
    with reading(path):
        try:
            return pydicom.dcmread(path, **how)
        except pydicom.errors.InvalidDicomError:
            raise InputError(path, "truncated or damaged: it is not a DICOM file", COPY_AGAIN) from None


def _check_inflated(path: Path, head: int) -> None:
    """Raises an InputError unless the deflated elements are of a reasonable length, which pydicom does not check."""
    inflate, total = zlib.decompressobj(RAW_DEFLATE), 0
    with reading(path), open(path, "rb") as file:
        file.seek(head)
        while not inflate.eof and total <= MAX_INFLATED:
            packed = inflate.unconsumed_tail or file.read(CHUNK)
            chunk = inflate.decompress(packed, CHUNK)
            total += len(chunk)
            if not packed and not chunk:
                raise InputError(path, "truncated: the compressed data ends early", COPY_AGAIN)
    if total > MAX_INFLATED:
        raise InputError(path, f"inflates to more than {MAX_INFLATED >> 20} MB", DECODE)


def need(path: Path, item: Any, keyword: str) -> Any:
    """The value of an element; an InputError if it is missing or empty."""
    value = item.get(keyword)
    if value is None or value == "":
        raise InputError(path, f"damaged DICOM file: {keyword} is missing", COPY_AGAIN)
    return value


def need_integer(path: Path, item: Any, keyword: str) -> int:
    """The whole number of an element; an InputError if it is missing or empty."""
    return int(need(path, item, keyword))
