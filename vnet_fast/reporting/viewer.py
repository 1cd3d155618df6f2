"""Packs the held-out cases for the page's viewer: 8-bit intensities and labels around the structures, compressed."""

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast import plotting
from vnet_fast.evaluation.evaluation import Evaluation, labels_of
from vnet_fast.evaluation.figures import CaseFigure
from vnet_fast.io.grid import Grid
from vnet_fast.io.label_names import colour_of
from vnet_fast.regions import Region

# of all cases together: 7 to 10 MB in the page, as MR is compressed by 15 to 40 %, beside 3 to 5 MB of pictures
TOTAL_VOXELS = 8_500_000
# of one case; if there are more cases than have room with the fewest, those with the lowest Dice are shown
MOST_VOXELS, FEWEST_VOXELS = 4_000_000, 34_000
MAX_CASES = TOTAL_VOXELS // FEWEST_VOXELS
# around the structures: a fraction of their extent, and at least so many mm
MARGIN, MIN_MARGIN = 0.25, 10.0
# percentiles of the intensities that are kept apart, and of those that are shown first
RANGE, WINDOW = (0.1, 99.9), (1.0, 99.5)
# of the lines of the reference and of each prediction, for SVG; as DASHES in viewer.js
DASHES = ("", "6 4", "2 3", "9 3 2 3", "14 4")
# of the bytes; the highest takes several times as long for 1 % less
COMPRESSION = 6


@dataclass(frozen=True)
class ClassInView:
    """A class whose contours the viewer draws.

    Args:
        title: what it is called.
        labels: of the masks' voxels that are in it.
        colour: in CSS, or "" if contours have the colours of their masks, as in the pictures.
    """

    title: str
    labels: tuple[int, ...]
    colour: str


@dataclass(frozen=True)
class CaseInView:
    """A case in the viewer.

    Args:
        name: of the case.
        title: its name and Dice.
        content: for `viewer.js`, which describes it.
    """

    name: str
    title: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Viewer:
    """What the viewer shows.

    Args:
        classes: at least one.
        masks: names of the reference, which is the first, and of the predictions.
        colours: of the masks, in CSS.
        cases: at least one.
    """

    classes: Sequence[ClassInView]
    masks: Sequence[str]
    colours: Sequence[str]
    cases: Sequence[CaseInView]

    @property
    def line_colours(self) -> Sequence[str]:
        """Of the lines that show how masks are drawn; if colours tell classes apart, they have the text's."""
        return self.colours if len(self.classes) == 1 else ["currentColor"] * len(self.masks)

    @property
    def dashes(self) -> Sequence[str]:
        """Of the lines of the masks, for SVG."""
        return DASHES

    @property
    def settings(self) -> dict[str, Any]:
        """What is the same for all cases, for `viewer.js`."""
        classes = [{"title": shown.title, "labels": shown.labels, "colour": shown.colour} for shown in self.classes]
        masks = [{"title": name, "colour": c} for name, c in zip(self.masks, self.colours, strict=True)]
        return {"classes": classes, "masks": masks}


def make_viewer(evaluations: Sequence[Evaluation], unions: Sequence[Region], cases: Sequence[CaseInView]) -> Viewer:
    """A Viewer of cases.

    Args:
        evaluations: of the runs.
        unions: regions of labels, which are the classes if there are any.
        cases: packed by `pack`.
    """
    evaluation, several = evaluations[0], len(evaluations) > 1
    classes = [
        ClassInView(
            evaluation.title(label),
            labels_of(label, unions),
            css_colour(label) if len(evaluation.labels) > 1 else "",
        )
        for label in evaluation.labels
    ]
    names = ["reference", *(evaluation.name if several else "prediction" for evaluation in evaluations)]
    colours = [plotting.REFERENCE.color, plotting.PREDICTION.color, *plotting.DARK.series[2:], "#ffffff"]
    return Viewer(classes, names, colours[: len(names)], cases)


def css_colour(label: int) -> str:
    """The colour of a label in a mask's file, in CSS."""
    return "#" + "".join(f"{round(255 * value):02x}" for value in colour_of(label))


def pack(
    figure: CaseFigure, predictions: Iterable[NDArray[np.uint8] | None], number: int, labels: Sequence[int]
) -> dict[str, Any]:
    """Packs a case for `viewer.js`.

    Args:
        figure: its volume, reference and grid.
        predictions: of each run, or None where it has none.
        number: of cases that are shown together.
        labels: of the classes that are shown; what has others, as the ignored one, is no structure.

    Returns:
        an object for JSON. Lists of three are x y z: `size` in voxels, `spacing` in mm, the `first` slice of the
        volume's `slices` that is shown, counted from 0, the `step` to the next one, and the `last`; `origin`, the place
        of the volume's first voxel along each axis in mm (left, posterior, superior); `start`, the slices with most of
        the reference. `range` and `window` are pairs of intensities: those of the bytes 0 and 255, and those shown
        black and white. `image` and `masks` (null for None) are bytes in the order of the voxels, x first, compressed
        by zlib and in base64.
    """
    masks, grid = [figure.reference, *predictions], figure.grid
    inside = [np.isin(mask, labels) for mask in masks if mask is not None]
    structures = np.any(inside, axis=0)
    # first seen is what should be there; a wrong prediction may be elsewhere
    sought = inside[0] if inside[0].any() else structures
    box = _box(structures, grid.spacing)
    step = _steps(structures[box].shape, grid.spacing, min(MOST_VOXELS, TOTAL_VOXELS // number))
    image = _block_means(figure.image[box], step)
    # a voxel of a mask is the one in the middle of its block
    middles = [_middles(side.start, side.stop, length) for side, length in zip(box, step, strict=True)]
    (low, high), (black, white) = (np.percentile(image, ends).tolist() for ends in (RANGE, WINDOW))
    scaled = np.clip((image - low) * (255 / max(high - low, 1e-6)), 0, 255).round().astype(np.uint8)
    return {
        "size": image.shape[::-1],
        "spacing": [round(s * n, 4) for s, n in zip(grid.spacing, step[::-1], strict=True)],
        "first": [int(indices[0]) for indices in middles[::-1]],
        "step": step[::-1],
        "last": [int(indices[-1]) for indices in middles[::-1]],
        "slices": grid.size,
        "origin": [round(float(value), 4) for value in _origin_along_axes(grid)],
        "start": _fullest(sought[np.ix_(*middles)]),
        "range": [low, high],
        "window": [black, max(white, black + 1e-6)],
        "image": _compressed(scaled),
        "masks": [None if mask is None else _compressed(mask[np.ix_(*middles)]) for mask in masks],
    }


def _box(structures: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[slice, slice, slice]:
    """The voxels around the structures, with a margin; all of them if there are none."""
    if not structures.any():
        return tuple(slice(0, length) for length in structures.shape)  # type: ignore[return-value]  # of three
    found = []
    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
        occupied = np.flatnonzero(structures.any(others))
        first, end = int(occupied[0]), int(occupied[-1]) + 1
        margin = math.ceil(max(MARGIN * (end - first), MIN_MARGIN / spacing[2 - axis]))
        found.append(slice(max(0, first - margin), min(structures.shape[axis], end + margin)))
    return found[0], found[1], found[2]


def _steps(shape: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, int, int]:
    """How many voxels are shown as one along each axis, z y x: the finest axis is the first to get coarser."""
    step = [1, 1, 1]
    while math.prod(-(-length // n) for length, n in zip(shape, step, strict=True)) > most:
        step[min(range(3), key=lambda axis: (spacing[2 - axis] * step[axis], -shape[axis]))] += 1
    return step[0], step[1], step[2]


def _block_means(image: np.ndarray, step: Sequence[int]) -> np.ndarray:
    """The means of blocks of voxels; the blocks at the end have what is left."""
    for axis, length in enumerate(step):
        if length > 1:
            starts = np.arange(0, image.shape[axis], length)
            counts = np.diff(np.append(starts, image.shape[axis]))
            shape = [-1 if other == axis else 1 for other in range(3)]
            image = np.add.reduceat(image, starts, axis) / counts.reshape(shape)
    return image


def _middles(start: int, end: int, length: int) -> NDArray[np.intp]:
    """The voxels in the middle of blocks from `start` on; the block at the end has what is left."""
    starts = np.arange(start, end, length)
    return starts + np.minimum(length, end - starts) // 2


def _origin_along_axes(grid: Grid) -> NDArray[np.float64]:
    """The place of the first voxel along each of the grid's own axes, mm."""
    axes: NDArray[np.float64] = np.array(grid.direction).reshape(3, 3)
    return np.array(grid.origin) @ axes


def _fullest(structures: NDArray[np.bool_]) -> list[int]:
    """The slices with most of the structures, x y z; the middle ones if there are none."""
    if not structures.any():
        return [length // 2 for length in structures.shape[::-1]]
    return [int(structures.sum(others).argmax()) for others in ((0, 1), (0, 2), (1, 2))]


def _compressed(array: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), COMPRESSION)).decode("ascii")
