"""The content of a volume's header, and checks of its geometry.

Headers are checked before any voxel is read, because ITK silently misreads some invalid ones.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from vnet_fast.errors import InputError
from vnet_fast.io.integrity import COPY_AGAIN

T = TypeVar("T")

# remedies
CONVERT_ENCODING = "Convert it, for example with ITK-SNAP or SimpleITK"
CORRECT_HEADER = "Correct the header, or export the file again"
ONE_FOLDER = "Put both files into one folder"
SCALAR_VOLUME = "Name a 3-D volume with one value per voxel"
ONE_OF_SEVERAL = "Split it into its points in time or channels, and name one volume of it"
# 1024 voxels along each axis; as float32 that is 4 GiB of memory
MAX_VOXELS = 1 << 30
# of a volume; a longer fourth axis is one of time
MAX_CHANNELS = 64
# mm
MIN_SPACING, MAX_SPACING = 1e-3, 1e3
MAX_ORIGIN = 1e6
# largest deviation of the axes' scalar products from those of orthonormal axes; files store six digits
DIRECTION_TOLERANCE = 1e-3
# largest deviation between the header's geometry and ITK's; ITK may have rounded to float32
AGREEMENT_TOLERANCE = 1e-3
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
# of a header in text: bytes of a line, and lines
MAX_LINE, MAX_LINES = 1 << 16, 10_000
# characters of a file's name that a message quotes
MAX_NAME = 255

INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Placement:
    """The position of a volume's voxels in space, in ITK's coordinates: left, posterior, superior.

    Args:
        spacing: mm, x y z.
        origin: centre of the first voxel, mm, x y z.
        direction: 3 x 3 matrix, row by row; its columns are the unit vectors of the voxels' axes.
    """

    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """The valid header of a 3-D scalar volume, or of several on one grid.

    Args:
        size: voxels, x y z.
        data_bytes: number of bytes of the uncompressed voxels.
        placements: one, or two if the format states the placement twice.
        volumes: how many there are, one for each channel.
    """

    size: tuple[int, int, int]
    data_bytes: int
    placements: tuple[Placement, ...]
    volumes: int = 1


def make_header(
    path: Path,
    size: Sequence[int],
    channels: int,
    voxel_bytes: int,
    placements: Callable[[], Sequence[Placement]],
    several: bool = False,
) -> Header:
    """Checks the values of a header and returns them as a Header.

    Args:
        path: of the file, for messages.
        size: voxels along each axis, any number of axes.
        channels: values per voxel.
        voxel_bytes: bytes per voxel.
        placements: returns the placements; called only once the file is known to have three axes.
        several: whether the format's fourth axis may have several volumes.

    Raises:
        InputError: if it is not a scalar volume, is too large, or has an invalid placement.
    """
    if not size or min(size) < 1:
        raise InputError(path, f"its header gives a size of {' '.join(map(str, size))}", COPY_AGAIN)
    # some programs write a volume with a fourth axis of length one
    is_one = len(size) == 3 or (len(size) > 3 and max(size[3:]) == 1)
    if not (is_one or (several and len(size) == 4 and size[3] <= MAX_CHANNELS)) or channels != 1:
        raise scalar_volume_error(path, size, channels)
    voxels = math.prod(size)
    if voxels > MAX_VOXELS:
        cause = f"its header gives {voxels:,} voxels, more than the limit of {MAX_VOXELS:,}"
        raise InputError(path, cause, "Crop or resample it, if this is its true size")
    checked = tuple(placements())
    for placement in checked:
        check_placement(path, placement)
    return Header(triple(size[:3]), voxels * voxel_bytes, checked, math.prod(size[3:]))


def scalar_volume_error(path: Path, size: Sequence[int], channels: int, remedy: str = SCALAR_VOLUME) -> InputError:
    """Returns the error for an image that is not a 3-D volume with one value per voxel.

    Args:
        path: of the file, for messages.
        size: voxels along each axis, any number of axes.
        channels: values per voxel.
        remedy: unless the image holds several volumes.
    """
    values = f"{channels} value{'s' * (channels != 1)} per voxel"
    if len(size) > 3 and channels == 1:
        shown = " x ".join(map(str, size))
        return InputError(path, f"is {len(size)}-D ({shown}) with {values}, not 3-D", ONE_OF_SEVERAL)
    return InputError(path, f"is {len(size)}-D with {values}, not 3-D with 1", remedy)


def not_finite(path: str | Path, nans: int, infinite: int) -> InputError:
    """Returns the error for a volume with voxels that are no numbers, of which so many are NaN and infinite."""
    return InputError(path, f"{nans} voxels are NaN and {infinite} infinite", "Export it again without them")


def check_placement(path: str | Path, placement: Placement) -> None:
    """Raises an InputError unless a medical scan can have this placement."""
    spacing, origin = placement.spacing, placement.origin
    if not all(MIN_SPACING <= length <= MAX_SPACING for length in spacing):
        cause = f"its spacing is {format_numbers(spacing)} mm, outside {MIN_SPACING:g} to {MAX_SPACING:g} mm"
        raise InputError(path, cause, "Export it again with its spacing in mm")
    if not all(abs(coordinate) <= MAX_ORIGIN for coordinate in origin):
        cause = f"its origin is {format_numbers(origin)} mm, more than {MAX_ORIGIN:,.0f} mm from zero"
        raise InputError(path, cause, "Export it again with its origin in mm")
    axes = np.array(placement.direction).reshape(3, 3)
    # not >, so that NaN is refused too
    if not np.abs(axes.T @ axes - np.eye(3)).max() <= DIRECTION_TOLERANCE:
        cause = f"its direction is {format_numbers(placement.direction)}, whose axes are not perpendicular unit vectors"
        raise InputError(path, cause, "Resample it onto perpendicular axes, or export it again")


def check_agreement(path: Path, header: Header, size: Sequence[int], placement: Placement) -> None:
    """Raises an InputError unless ITK has read what the header states.

    Args:
        path: of the file, for messages.
        header: its Header.
        size: voxels of the image that ITK has read, x y z.
        placement: of the image that ITK has read.
    """
    if tuple(size) == header.size and any(_agree(stated, placement) for stated in header.placements):
        return
    stated = header.placements[0]
    compared: tuple[tuple[str, Sequence[float], Sequence[float]], ...] = (
        ("size", header.size, size),
        ("spacing", stated.spacing, placement.spacing),
        ("origin", stated.origin, placement.origin),
        ("direction", stated.direction, placement.direction),
    )
    name, ours, itks = next((entry for entry in compared if not _are_close(*entry[1:])), compared[-1])
    cause = f"its header can be read in two ways: {name} {format_numbers(ours)}, or {format_numbers(itks)}"
    raise InputError(path, cause, COPY_AGAIN)


def _are_close(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and np.allclose(first, second, rtol=AGREEMENT_TOLERANCE, atol=AGREEMENT_TOLERANCE)


def _agree(first: Placement, second: Placement) -> bool:
    return (
        np.allclose(first.spacing, second.spacing, rtol=AGREEMENT_TOLERANCE, atol=0)
        and np.allclose(first.origin, second.origin, rtol=1e-6, atol=AGREEMENT_TOLERANCE)
        and np.allclose(first.direction, second.direction, rtol=0, atol=AGREEMENT_TOLERANCE)
    )


def split_steps(steps: ArrayLike) -> tuple[tuple[float, float, float], tuple[float, ...]]:
    """Splits the steps from voxel to voxel into their lengths and their directions.

    Args:
        steps: (3, 3), a row for each axis of the voxels, mm.

    Returns:
        spacing, mm, and direction, row by row; the direction of a step of length zero is NaN.
    """
    steps = np.array(steps, dtype=np.float64)
    spacing = np.linalg.norm(steps, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = (steps / spacing[:, None]).T
    return triple(spacing.tolist()), tuple(direction.ravel().tolist())


@contextlib.contextmanager
def reporting_damage(path: Path) -> Iterator[None]:
    """Turns the KeyError of a missing field and the ValueError of a malformed one into an InputError about the file."""
    try:
        yield
    except KeyError as error:
        raise InputError(path, f"damaged header: {error.args[0]} is missing", COPY_AGAIN) from None
    except ValueError as error:
        raise InputError(path, f"damaged header ({error})", COPY_AGAIN) from None


def parse_integers(text: str, count: int | None = None) -> list[int]:
    """Parses whole numbers; raises a ValueError if the text has anything else, or not `count` of them."""
    return [int(word) for word in _split(text, INTEGER, count)]


def parse_numbers(text: str, count: int | None = None) -> list[float]:
    """Parses numbers; raises a ValueError if the text has anything else, or not `count` of them."""
    return [float(word) for word in _split(text, NUMBER, count)]


def _split(text: str, pattern: re.Pattern[str], count: int | None) -> list[str]:
    parts = text.split()
    if not parts or (count is not None and len(parts) != count):
        raise ValueError(f"{count or 'some'} numbers are needed, got {text!r}")
    wrong = [part for part in parts if not pattern.fullmatch(part)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a number")
    return parts


def format_numbers(values: Iterable[float]) -> str:
    """Formats numbers for a message."""
    return " ".join(f"{value:.7g}" for value in values)


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Returns three values as a tuple; raises a ValueError if there are more or fewer."""
    x, y, z = values
    return x, y, z


def find_data_file(path: Path, name: str) -> Path:
    """Returns the path of the data file that a header names.

    Args:
        path: of the header.
        name: of the data file, relative to the header's folder.

    Raises:
        InputError: if it lies outside the header's folder, is the header itself, or is not a regular file.
    """
    shown = name[:MAX_NAME]
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(path, f"its data file lies outside its folder ({shown})", ONE_FOLDER)
    data = path.parent / name
    # unlike Path's methods, those of os.path return False for a name that no file can have
    if os.path.exists(data) and os.path.samefile(data, path):
        raise InputError(path, "names itself as its data file", COPY_AGAIN)
    if not os.path.exists(data):
        raise InputError(path, f"its data file {shown} is missing", ONE_FOLDER)
    if not os.path.isfile(data):
        raise InputError(path, f"its data file {shown} is not a regular file", COPY_AGAIN)
    return data
