"""SimpleITK's readers, their errors in our words."""

import locale

import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.integrity import COPY_AGAIN

sitk.ProcessObject.SetGlobalWarningDisplay(False)
# of text; see `called`
ENCODING = locale.setlocale(locale.LC_CTYPE)


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
    """What a reader's method returns; an `InputError` about `path` if it fails.

    ITK sets the locale of the whole process while it reads numbers, and several threads leave it at
    `C`, with which Python takes all text for ASCII: it is set back.
    """
    try:
        return method()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(path, f"can't be read ({reason})", COPY_AGAIN) from None
    finally:
        locale.setlocale(locale.LC_CTYPE, ENCODING)
