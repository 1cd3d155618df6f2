"""SimpleITK's readers, with errors that name the file and the cause."""

import contextlib
import ctypes
import locale
import threading
from collections.abc import Iterator
from pathlib import Path

import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io.integrity import COPY_AGAIN

# the locale of text, before ITK changes it
ENCODING = locale.setlocale(locale.LC_CTYPE)
# held while ITK reads or writes, because setting the locale in one thread can crash another that uses it
_LOCALE_LOCK = threading.Lock()


@contextlib.contextmanager
def kept_locale() -> Iterator[None]:
    """Lets one thread at a time use ITK's files, without ITK's warnings, and restores the locale of the process.

    ITK changes the locale while it reads and writes numbers. After some errors it leaves it at `C`, and Python then
    takes all text for ASCII.
    """
    with _LOCALE_LOCK:
        warns = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(warns)
            locale.setlocale(locale.LC_CTYPE, ENCODING)


def file_reader(path: Path, image_io: str) -> sitk.ImageFileReader:
    """Returns a reader of one file.

    Args:
        path: of the file.
        image_io: name of ITK's reader of the format. ITK's own choice, by suffix, fails for most suffixes in
            upper case.

    Raises:
        InputError: if SimpleITK can't be given the path.
    """
    check_name(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def check_name(path: Path) -> None:
    """Raises an InputError for a path that is not valid UTF-8, with which SimpleITK would end the process."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(path, "its name is not in UTF-8", "Rename it") from None


def read_file(path: Path, image_io: str) -> sitk.Image:
    """Reads one file.

    Args:
        path: of the file.
        image_io: name of ITK's reader of the format.

    Raises:
        InputError: if it can't be read.
    """
    reader = file_reader(path, image_io)
    try:
        with kept_locale():
            return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(path, f"can't be read ({reason})", COPY_AGAIN) from None


def return_freed_memory() -> None:
    """Returns the memory that readers have freed to the system, which glibc may keep beside what is allocated next."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
