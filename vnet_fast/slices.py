"""Slices of a volume in a picture, with the contours of structures on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# around the structures on a picture's slices: a fraction of their extent, and at least so many mm
MARGIN, MIN_MARGIN = 0.35, 12.0
# where the patient's directions are on a slice, as shares of its width and height
DIRECTIONS = {"A": (0.5, 0.95), "P": (0.5, 0.05), "R": (0.04, 0.5), "L": (0.96, 0.5)}


@dataclass(frozen=True)
class ContourStyle:
    """How a mask's contours are drawn on grey slices."""

    color: str
    linestyle: Literal["solid", "dashed"]


def intensity_limits(image: np.ndarray, slices: Sequence[int]) -> tuple[float, float]:
    """The intensities of some slices that are black and white."""
    low, high = np.percentile(image[slices], [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def height_of_row(image: np.ndarray, spacing: Sequence[float]) -> float:
    """Inches of a row of three slices of an image (z, y, x) in a picture 11 inches wide."""
    aspect = image.shape[1] * spacing[1] / (image.shape[2] * spacing[0])
    return float(3.5 * min(max(aspect, 0.4), 1.6))


def show_slice(
    axes: "Axes", image: np.ndarray, z: int, limits: tuple[float, float], spacing: Sequence[float], color: str
) -> None:
    """Draws a slice with the patient's directions, and its number above it.

    Args:
        axes: to draw on.
        image: (z, y, x).
        z: the index of the slice.
        limits: the intensities that are black and white.
        spacing: mm, x y z.
        color: of the text.
    """
    low, high = limits
    axes.imshow(image[z], cmap="gray", vmin=low, vmax=high, aspect=spacing[1] / spacing[0])
    _mark_directions(axes)
    axes.set_title(f"slice {z + 1} of {len(image)}", fontsize=9, color=color)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _mark_directions(axes: "Axes") -> None:
    """Writes the patient's directions at the edges of a slice: anterior, posterior, right and left."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2, foreground="black")]
    for letter, (x, y) in DIRECTIONS.items():
        axes.annotate(letter, (x, y), xycoords="axes fraction", color="white", fontsize=9, ha="center", va="center",
                      path_effects=outline)  # fmt: skip


def choose_slices(reference: np.ndarray) -> list[int]:
    """The indices of three slices across the structure, or across the volume if there is no structure."""
    occupied = np.flatnonzero((reference > 0).any((1, 2)))
    first, last = (int(occupied[0]), int(occupied[-1])) if occupied.size else (0, len(reference) - 1)
    return [round(first + fraction * (last - first)) for fraction in (0.2, 0.5, 0.8)]


def crop_around(masks: Sequence[np.ndarray], slices: Sequence[int], spacing: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns around the structures on the slices; all rows and columns if there are no structures."""
    structures = np.any([(mask[slices] > 0).any(0) for mask in masks], axis=0)
    if not structures.any():
        return slice(None), slice(None)
    return _extent(structures.any(1), spacing[1]), _extent(structures.any(0), spacing[0])


def _extent(occupied: NDArray[np.bool_], step: float) -> slice:
    """The occupied range of rows or columns, which are `step` mm apart, with a margin."""
    indices = np.flatnonzero(occupied)
    first, last = int(indices[0]), int(indices[-1])
    margin = round(max(MARGIN * (last - first + 1), MIN_MARGIN / step))
    return slice(max(0, first - margin), last + 1 + margin)


def draw_contours(axes: "Axes", labels: np.ndarray, style: ContourStyle) -> None:
    """Draws the border of each label, also where it meets the border of the picture."""
    for label in np.unique(labels[labels > 0]):
        padded = np.pad((labels == label).astype(float), 1)
        y, x = (np.arange(n) - 1 for n in padded.shape)
        axes.contour(x, y, padded, [0.5], colors=style.color, linestyles=style.linestyle, linewidths=1.7)
