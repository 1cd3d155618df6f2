"""What a volume's header says, and whether a scan can be so. It is read and judged before any voxel
is, by rules as strict as the formats': what ITK would read in spite of them, it may read wrongly.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vnet_fast.errors import InputError
from vnet_fast.io.integrity import COPY_AGAIN

# 1024 voxels along each axis; as float32 that is 4 GiB of memory
MAX_VOXELS = 1 << 30
# mm
MIN_SPACING, MAX_SPACING = 1e-3, 1e3
MAX_ORIGIN = 1e6
# cosines between axes, their lengths less 1; files keep six digits
DIRECTION_TOLERANCE = 1e-3
# what ITK makes of a header may be off by float32's rounding
SAME_PLACE = 1e-3

INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|inf(inity)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Placement:
    """Where voxels lie: spacing and origin in mm, x y z; direction row by row; in ITK's sense of the
    axes, left, posterior, superior.
    """

    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]


@dataclass(frozen=True)
class Header:
    """A sound header of a 3-D volume of scalars.

    Args:
        size: voxels, x y z.
        data_bytes: of the voxels, not compressed.
        placements: one, or two where a format states them in two ways.
    """

    size: tuple[int, int, int]
    data_bytes: int
    placements: tuple[Placement, ...]


def make_header(path, size, channels, voxel_bytes, placements):
    """A Header of what a file says, once that is judged.

    Args:
        path: of the file, for messages.
        size: voxels, along any number of axes.
        channels: numbers a voxel.
        voxel_bytes: bytes a voxel.
        placements: called without arguments once there are three axes; returns several Placement.

    Raises:
        InputError: if it is no volume of scalars, too large, or nowhere in space.
    """
    if not size or min(size) < 1:
        raise InputError(path, f"its header says a size of {' '.join(map(str, size))}", COPY_AGAIN)
    # a fourth axis of one is what some programs write for a volume
    if not (len(size) == 3 or (len(size) > 3 and max(size[3:]) == 1)) or channels != 1:
        cause = f"not a volume of scalars but {len(size)}-D with {channels} number{'s' * (channels != 1)} a voxel"
        raise InputError(path, cause, "Name a 3-D volume")
    voxels = math.prod(size)
    if voxels > MAX_VOXELS:
        cause = f"its header says {voxels:,} voxels, more than the {MAX_VOXELS:,} that are read"
        raise InputError(path, cause, "Crop or resample it, if that is its size")
    placed = tuple(placements())
    for placement in placed:
        check_placement(path, placement)
    return Header(tuple(size[:3]), voxels * voxel_bytes, placed)


def check_placement(path, placement):
    """Makes sure that a scan can lie there: `spacing`, `origin` and `direction`, as of a Placement."""
    spacing, origin = placement.spacing, placement.origin
    if not all(MIN_SPACING <= s <= MAX_SPACING for s in spacing):
        cause = f"its spacing is {words(spacing)} mm, not from {MIN_SPACING:g} to {MAX_SPACING:g}"
        raise InputError(path, cause, "Export it again with its spacing in mm")
    if not all(abs(o) <= MAX_ORIGIN for o in origin):
        cause = f"its origin is {words(origin)} mm, not within {MAX_ORIGIN:,.0f}"
        raise InputError(path, cause, "Export it again with its origin in mm")
    axes = np.array(placement.direction).reshape(3, 3)
    # not ≤, so that NaN is refused too
    if not np.abs(axes.T @ axes - np.eye(3)).max() <= DIRECTION_TOLERANCE:
        cause = f"its direction is {words(placement.direction)}, whose axes are not perpendicular and of length 1"
        raise InputError(path, cause, "Resample it onto perpendicular axes, or export it again")


def check_agreement(path, header, grid):
    """Makes sure that what ITK read is what the header says.

    Args:
        path: of the file, for messages.
        header: its Header.
        grid: of the image that was read: `size`, `spacing`, `origin`, `direction`.
    """
    if tuple(grid.size) == header.size and any(_same_place(p, grid) for p in header.placements):
        return
    first = header.placements[0]
    for name, ours in (("size", header.size), *((n, getattr(first, n)) for n in ("spacing", "origin", "direction"))):
        theirs = getattr(grid, name)
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=SAME_PLACE, atol=SAME_PLACE):
            break
    cause = f"its header can be read in two ways: {name} {words(ours)}, or {words(theirs)}"
    raise InputError(path, cause, COPY_AGAIN)


def _same_place(placement, grid):
    return (
        np.allclose(placement.spacing, grid.spacing, rtol=SAME_PLACE, atol=0)
        and np.allclose(placement.origin, grid.origin, rtol=1e-6, atol=SAME_PLACE)
        and np.allclose(placement.direction, grid.direction, rtol=0, atol=SAME_PLACE)
    )


def columns(vectors):
    """Spacing and direction of three vectors, each the step along one axis of the voxels, in mm.

    Returns:
        (spacing, direction row by row); the direction of a vector of length zero is NaN.
    """
    steps = np.array(vectors, dtype=np.float64)
    spacing = np.linalg.norm(steps, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = (steps / spacing[:, None]).T
    return tuple(spacing.tolist()), tuple(direction.ravel().tolist())


def integers(text, count=None):
    """The whole numbers of a text; a ValueError if there is anything else, or not `count`."""
    return [int(word) for word in _split(text, INTEGER, count)]


def numbers(text, count=None):
    """The numbers of a text; a ValueError if there is anything else, or not `count`."""
    return [float(word) for word in _split(text, NUMBER, count)]


def _split(text, form, count):
    found = text.split()
    if not found or (count is not None and len(found) != count):
        raise ValueError(f"{count or 'some'} numbers are needed, got {text!r}")
    wrong = [word for word in found if not form.fullmatch(word)]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no number")
    return found


def words(values):
    """Numbers for a message."""
    return " ".join(f"{value:.7g}" for value in values)


CONVERT = "Convert it, with ITK-SNAP or SimpleITK for example"


# characters of a name in a message
MAX_NAME = 255


def beside(path, name):
    """The data file that a header names, which must lie in the header's folder or below."""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(path, f"its data file lies outside its folder ({name[:MAX_NAME]})", "Put the two side by side")
    data = path.parent / name
    # of os.path, for which a name that no file can have is one that none has
    if os.path.exists(data) and os.path.samefile(data, path):
        raise InputError(path, "names itself as its data file", COPY_AGAIN)
    if not os.path.exists(data):
        raise InputError(path, f"its data file {name[:MAX_NAME]} is missing", "Put the two side by side")
    if not os.path.isfile(data):
        raise InputError(path, f"its data file {name} is not a regular file", "Put the two side by side")
    return data
