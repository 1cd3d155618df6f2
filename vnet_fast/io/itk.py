"""SimpleITK's readers, their errors in our words."""

import contextlib
import locale

import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io.integrity import COPY_AGAIN

sitk.ProcessObject.SetGlobalWarningDisplay(False)
# of text, before ITK changes it
ENCODING = locale.setlocale(locale.LC_CTYPE)


@contextlib.contextmanager
def kept_locale():
    """Sets the locale back that ITK sets for the whole process while it reads and writes numbers: several
    threads, and some errors, leave it at `C`, with which Python takes all text for ASCII.
    """
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, ENCODING)


def file_reader(path, image_io):
    """A reader of one file in the format of `image_io`: named, because ITK goes by the suffix and
    knows few of them in upper case.
    """
    check_name(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    return reader


def check_name(path):
    """Makes sure that SimpleITK can be given a path: one that is no text would end the process."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(path, "its name is not in UTF-8", "Rename it") from None


def called(method, path):
    """What a reader's method returns; an `InputError` about `path` if it fails."""
    try:
        with kept_locale():
            return method()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(path, f"can't be read ({reason})", COPY_AGAIN) from None
