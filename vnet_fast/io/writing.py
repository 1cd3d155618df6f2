"""Writes volumes and masks, whole or not at all, with SimpleITK."""

import contextlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import formats, nifti
from vnet_fast.io.grid import Grid
from vnet_fast.io.itk import check_name, kept_locale
from vnet_fast.io.label_names import name_in_image, name_in_nifti

# a folder for unfinished files is named after the machine and the process that write them
UNFINISHED = ".writing-"
# those of this process
_own: set[Path] = set()
# seconds after which one of another machine is taken for left over
ABANDONED = 86_400
# signal 0 only asks whether there is a process; on Windows it is Ctrl-C
CAN_ASK = os.name != "nt"


def write(array: np.ndarray, grid: Grid, path: str | Path, names: Mapping[int, str] | None = None) -> None:
    """Writes an array, compressed.

    If writing fails, the file that `path` may have held before is still complete.

    Args:
        array: (z, y, x).
        grid: of the array.
        path: in one of `formats.SUFFIXES`; its folder must exist.
        names: of a mask's labels, by label, 1 and up; written if the format has a place for them.

    Raises:
        InputError: if the format is not supported, the folder can't be written, or the disk is full.
    """
    path = Path(path)
    check_name(path)
    formats.format_of(path)
    try:
        with _unfinished_folder(path) as folder:
            # ITK knows few suffixes in upper case
            header = folder / f"{formats.stem_of(path)}{formats.suffix_of(path)}"
            _write_image(grid.image_from(array), header, names or {})
            for part in folder.iterdir():
                if part != header:
                    os.replace(part, path.parent / part.name)
            # the header is moved last, so that it never names data that does not exist yet
            os.replace(header, path)
    except (OSError, RuntimeError, InputError) as error:
        raise _write_error(path, error) from None


def write_file(path: Path, save: Callable[[Path], None]) -> None:
    """Writes one file, whole or not at all.

    Args:
        path: of the file; its folder must exist.
        save: writes it to a path.

    Raises:
        InputError: if the folder can't be written, or the disk is full.
    """
    try:
        with _unfinished_folder(path) as folder:
            save(folder / path.name)
            os.replace(folder / path.name, path)
    except OSError as error:
        raise _write_error(path, error) from None


def _write_image(image: sitk.Image, path: Path, names: Mapping[int, str]) -> None:
    """Writes an image, and the names of its labels if there are any."""
    is_nifti, written = formats.format_of(path).image_io == nifti.IMAGE_IO, path
    if names and is_nifti:
        written = path.with_name("unnamed.nii")
    elif names:
        name_in_image(image, names)
    with kept_locale():
        sitk.WriteImage(image, str(written), useCompression=True)
    if is_nifti:
        # whose writer says nothing of a full disk
        formats.verify_volume(written)
    if written != path:
        name_in_nifti(written, path, names)
        written.unlink()


def copy(source: Path, target: Path) -> None:
    """Copies the files of a volume to the same name in another folder.

    Args:
        source: of the volume.
        target: of the copy; its folder must exist.

    Raises:
        InputError: if it can't be written.
    """
    try:
        with _unfinished_folder(target) as folder:
            # the header comes last, so that it never names data that does not exist yet
            for file in reversed(formats.files_of(source)):
                shutil.copyfile(file, folder / file.name)
                os.replace(folder / file.name, target.parent / file.name)
    except OSError as error:
        raise _write_error(target, error) from None


@contextlib.contextmanager
def _unfinished_folder(path: Path) -> Iterator[Path]:
    """A folder beside a path for files that are not complete yet; it is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{platform.node()}-{os.getpid()}-", dir=path.parent))
    _own.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _own.discard(folder)


def _write_error(path: Path, error: OSError | RuntimeError | InputError) -> InputError:
    reason = error.cause if isinstance(error, InputError) else getattr(error, "strerror", None)
    reason = str(reason or error).strip().splitlines()[-1]
    return InputError(path, f"can't be written ({reason})", "Choose a folder with room and permission")


def sweep_unfinished(folder: str | Path) -> None:
    """Deletes what killed processes were writing into a folder; what another process is writing is kept."""
    with contextlib.suppress(OSError):
        for left in Path(folder).glob(f"{UNFINISHED}*"):
            if _is_left_over(left):
                shutil.rmtree(left, ignore_errors=True)


def _is_left_over(path: Path) -> bool:
    machine, _, process = path.name.removeprefix(UNFINISHED).rpartition("-")[0].rpartition("-")
    if machine == platform.node() and process == str(os.getpid()):
        # a process before this one may have had its number, in a container for example
        return path not in _own
    if machine == platform.node() and process.isdigit() and CAN_ASK:
        return not _is_running(int(process))
    return time.time() - path.stat().st_mtime > ABANDONED


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
