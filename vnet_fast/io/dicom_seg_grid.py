"""Places the frames of DICOM Segmentations on a grid of voxels, without resampling.

A segmentation may leave out slices that have nothing of a segment. The grid therefore comes from the volume that the
mask belongs to, or, without one, from the places of all frames.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_seg import Content
from vnet_fast.io.grid import Grid
from vnet_fast.io.header import MAX_VOXELS, check_placement, format_numbers, triple

# a frame may lie this far from its slice, as a share of the slices' distance: as far as a slice from its regular place
SLICE_TOLERANCE = 0.05
# plus this, mm, which is also what it may be off along its rows and columns: positions are often rounded to a tenth
ROUNDING = 0.1
# share of the slices' distance beyond which a frame could belong to either of two slices
AMBIGUOUS = 0.25
# share of the slices' thickness that their distance exceeds
THIN = 0.25
# of direction cosines
DIRECTION_TOLERANCE = 1e-3
OTHER_GRID = "Name the segmentation of this volume"


def own_grid(contents: Sequence[Content]) -> Grid:
    """Returns the smallest grid that holds all frames of some segmentations.

    Args:
        contents: at least one.

    Raises:
        InputError: if the frames are not evenly spaced on parallel axes.
    """
    first, last = contents[0], contents[-1]
    for other in contents[1:]:
        alike = other.size == first.size and np.allclose(other.spacing, first.spacing, rtol=1e-3)
        if not alike or not np.allclose(other.axes, first.axes, rtol=0, atol=DIRECTION_TOLERANCE):
            cause = f"the frames of {first.path.name} differ from its own in size, spacing or orientation"
            raise InputError(other.path, cause, "Compare segmentations of one series")
    positions = np.array([frame.position for content in contents for frame in content.frames])
    normal = first.axes[:, 2]
    places = positions @ normal
    lowest = int(places.argmin())
    gap = _gap(last.path, places - places[lowest], first.gaps)
    numbers = np.round((places - places[lowest]) / gap)
    off = positions - positions[lowest] - np.outer(numbers * gap, normal)
    # the positions of far slices may add up what the gap is rounded by
    if np.abs(off).max() > SLICE_TOLERANCE * gap + ROUNDING:
        raise InputError(last.path, "its frames do not lie on a regular grid", "Export it on the slices of one series")
    size = (*first.size, int(numbers.max()) + 1)
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        raise InputError(last.path, f"its frames span {' x '.join(map(str, size))} voxels", "Check their positions")
    direction, spacing = tuple(first.axes.ravel().tolist()), (*first.spacing, gap)
    grid = Grid(size, triple(map(float, spacing)), triple(positions[lowest].tolist()), direction)
    check_placement(last.path, grid.placement)
    return grid


def _gap(path: Path, places: NDArray[np.float64], stated: tuple[float, float]) -> float:
    """The distance of slices of which all places, mm from the lowest one, are multiples."""
    steps = np.diff(np.unique(np.round(places, 4)))
    steps = steps[steps > ROUNDING / 10]
    gap, thickness = stated
    # some programs state the distance from edge to edge
    plausible = [gap] if gap > thickness * THIN else []
    candidates = [*plausible, *([float(steps.min())] if steps.size else []), *([thickness] if thickness else [])]
    for gap in candidates:
        numbers = np.round(places / gap)
        if np.abs(places - numbers * gap).max() <= min(SLICE_TOLERANCE * gap + ROUNDING, AMBIGUOUS * gap):
            # of many slices more exactly than it is stated
            return float(places @ numbers / (numbers @ numbers)) if numbers.any() else gap
    if candidates:
        raise InputError(path, "its frames are not evenly spaced", "Export it on the slices of one series")
    raise InputError(path, "does not say the distance of its slices", "Name it together with its volume")


def place(content: Content, grid: Grid, name: str = "its volume") -> sitk.Image:
    """Places the frames of a segmentation on a grid; voxels of no frame are background.

    Args:
        content: of the segmentation.
        grid: of its voxels, in any order and direction of the axes.
        name: of what has this grid, for messages.

    Returns:
        3-D SimpleITK image, uint8: the numbers of the segments.

    Raises:
        InputError: if the frames lie elsewhere, or segments overlap.
    """
    labels = np.zeros(grid.shape, np.uint8)
    order, signs = _axes_on(content, grid, name)
    # a view whose axes are slices, rows and columns of the frames
    view = labels.transpose([2 - axis for axis in order[::-1]])
    view = view[tuple(slice(None, None, sign) for sign in signs[::-1])]
    taken: set[tuple[int, int]] = set()
    for frame in content.frames:
        number = _slice_of(content, frame.position, grid, (order, signs), name)
        if (frame.segment, number) in taken:
            cause = f"has two frames of segment {frame.segment} in one slice"
            raise InputError(content.path, cause, "Export one segmentation to a file")
        taken.add((frame.segment, number))
        _add(content, view[number], frame.segment, content.voxels(frame.index))
    return grid.image_from(labels)


def _add(content: Content, target: NDArray[np.uint8], segment: int, voxels: NDArray[np.uint8]) -> None:
    """Adds a frame to a slice; an InputError if a voxel there has a label already."""
    new = voxels * np.uint8(segment) if segment else voxels
    both = (target > 0) & (new > 0)
    if both.any():
        pair = sorted((int(target[both][0]), int(new[both][0])))
        first, second = (f"{number} ({content.names[number]})" if number in content.names else f"{number}"
                         for number in pair)  # fmt: skip
        cause = f"segments {first} and {second} overlap, and a mask has one label for each voxel"
        raise InputError(content.path, cause, "Export segments that do not overlap")
    target[new > 0] = new[new > 0]


def _axes_on(content: Content, grid: Grid, name: str) -> tuple[list[int], list[int]]:
    """The axes of a grid that the columns, rows and slices of frames run along, and in which direction (1 or -1)."""
    path, spacing = content.path, np.array(grid.spacing)
    products = np.array(grid.direction).reshape(3, 3).T @ content.axes
    order = np.abs(products).argmax(0).tolist()
    size = [grid.size[axis] for axis in order]
    aligned = np.abs(np.abs(products) - np.eye(3)[:, order]).max() <= DIRECTION_TOLERANCE
    if sorted(order) != [0, 1, 2] or not aligned:
        cause = f"its direction is {format_numbers(content.axes.ravel())}, that of {name} is "
        raise InputError(path, cause + format_numbers(grid.direction), OTHER_GRID)
    if tuple(size[:2]) != content.size:
        ours, theirs = (" x ".join(map(str, part)) for part in (content.size, size[:2]))
        raise InputError(path, f"its frames have {ours} voxels, the slices of {name} {theirs}", OTHER_GRID)
    # at the far end of a frame the difference adds up
    off = np.abs(spacing[order[:2]] - content.spacing) * content.size
    if off.max() > ROUNDING:
        ours, theirs = format_numbers(content.spacing), format_numbers(spacing[order[:2]])
        raise InputError(path, f"its spacing is {ours}, that of {name} is {theirs}", OTHER_GRID)
    return order, [1 if products[axis, number] > 0 else -1 for number, axis in enumerate(order)]


def _slice_of(
    content: Content, position: NDArray[np.float64], grid: Grid, axes: tuple[list[int], list[int]], name: str
) -> int:
    """The slice of a frame, counted along the frames' normal; an InputError if it is none of the grid's."""
    order, signs = axes
    direction, spacing = np.array(grid.direction).reshape(3, 3), np.array(grid.spacing)
    # mm from the first voxel of the view, along columns, rows and slices
    place = ((position - np.array(grid.origin)) @ direction)[order]
    length = ((np.array(grid.size) - 1) * spacing)[order]
    place = np.where(np.array(signs) > 0, place, length - place)
    gap = float(spacing[order[2]])
    number = round(float(place[2]) / gap)
    off = np.array([place[0], place[1], place[2] - number * gap])
    allowed = min(SLICE_TOLERANCE * gap + ROUNDING, AMBIGUOUS * gap)
    if not 0 <= number < grid.size[order[2]] or np.abs(off[:2]).max() > ROUNDING or abs(off[2]) > allowed:
        cause = f"a frame lies at {format_numbers(position)} mm, which is no slice of {name}"
        raise InputError(content.path, cause, OTHER_GRID)
    return number
