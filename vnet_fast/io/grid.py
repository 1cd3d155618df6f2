"""Grids of voxels: the network's grid in a volume, and the resampling of volumes, masks and predictions.

Arrays and shapes are (z, y, x); sizes, spacings and origins are x y z, in mm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.io.header import Placement, triple

GEOMETRY_TOLERANCE = 1e-3
# of uint8
LABEL_LEVELS = 256


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in space.

    Args:
        size: voxels, x y z.
        spacing: mm, x y z.
        origin: centre of the first voxel, mm, x y z.
        direction: 3 x 3 matrix, row by row; its columns are the unit vectors of the grid's axes.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        """Returns the grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an array on this grid, z y x."""
        x, y, z = self.size
        return z, y, x

    @property
    def placement(self) -> Placement:
        """The grid's position in space, without its size."""
        return Placement(self.spacing, self.origin, self.direction)

    def oriented(self) -> "Grid":
        """Returns the grid of the same voxels with its axes reordered to left, posterior, superior.

        It is that of `sitk.DICOMOrient(image, "LPS")`, which would copy the voxels too.
        """
        single = sitk.Image(1, 1, 1, sitk.sitkUInt8)
        single.SetDirection(self.direction)
        direction = sitk.DICOMOrient(single, "LPS").GetDirection()
        axes, turned = (np.array(matrix).reshape(3, 3) for matrix in (self.direction, direction))
        # the axis of this grid that becomes each axis, and whether its direction changes
        products = axes.T @ turned
        order = np.abs(products).argmax(0)
        origin = np.array(self.origin)
        for new, old in enumerate(order):
            if products[old, new] < 0:
                origin = origin + (self.size[old] - 1) * self.spacing[old] * axes[:, old]
        size, spacing = triple(self.size[old] for old in order), triple(self.spacing[old] for old in order)
        return Grid(size, spacing, triple(origin.tolist()), direction)

    def slab(self, first: int, end: int) -> "Grid":
        """Returns the part of the grid from one slice to before another, along the third axis."""
        step = np.array(self.direction).reshape(3, 3)[:, 2] * self.spacing[2]
        origin = np.array(self.origin) + first * step
        return Grid((*self.size[:2], end - first), self.spacing, triple(origin.tolist()), self.direction)

    def image_from(self, array: np.ndarray) -> sitk.Image:
        """Returns a SimpleITK image with the values of a (z, y, x) array on this grid."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def working_grid(image: sitk.Image, spacing: Sequence[float], size: Sequence[int]) -> Grid:
    """Returns the network's grid for an image: centred on it, with its axes reordered to left, posterior, superior.

    Args:
        image: 3-D SimpleITK image.
        spacing: mm, x y z.
        size: voxels, x y z.

    Returns:
        Grid. Along an axis where the image already has the spacing, the voxels of both coincide.
    """
    file = Grid.of(image).oriented()
    first = []
    for file_size, file_spacing, new_size, new_spacing in zip(file.size, file.spacing, size, spacing, strict=True):
        ratio = new_spacing / file_spacing
        start = (file_size - 1) / 2 - (new_size - 1) / 2 * ratio
        # a spacing that the file has rounded to float32 must not shift it by a voxel
        first.append(math.floor(start + GEOMETRY_TOLERANCE) if math.isclose(ratio, 1, rel_tol=1e-6) else start)
    axes = np.array(file.direction).reshape(3, 3)
    origin = np.array(file.origin) + axes @ (np.array(first) * file.spacing)
    return Grid(triple(size), triple(map(float, spacing)), triple(map(float, origin)), file.direction)


def covered_share(image: sitk.Image, grid: Grid) -> tuple[float, float, float]:
    """Returns the share of the image's extent that the network's grid covers.

    Returns:
        0 to 1 for each axis of the grid: left, posterior, superior.
    """
    return _covered_share(Grid.of(image), grid.spacing, grid.size)


def _covered_share(file: Grid, spacing: Sequence[float], size: Sequence[int]) -> tuple[float, float, float]:
    file = file.oriented()
    extents = zip(file.size, file.spacing, size, spacing, strict=True)
    return triple(min(1.0, n * s / (fn * fs)) for fn, fs, n, s in extents)


def covering_size(image: sitk.Image, grid: Grid) -> tuple[int, int, int]:
    """Returns the size that the network's grid needs to cover the whole image.

    Returns:
        voxels, x y z; unchanged along an axis where the grid already covers all but 1e-3 of the image.
    """
    return covering_size_of(Grid.of(image), grid.spacing, grid.size)


def covering_size_of(file: Grid, spacing: Sequence[float], size: Sequence[int]) -> tuple[int, int, int]:
    """Returns the `covering_size` of an image from its file's grid.

    Args:
        file: the grid of the file.
        spacing: of the network's grid, mm, x y z.
        size: of the network's grid, voxels, x y z.
    """
    return triple(
        length if share >= 1 - GEOMETRY_TOLERANCE else math.ceil(length / share - GEOMETRY_TOLERANCE)
        for length, share in zip(size, _covered_share(file, spacing, size), strict=True)
    )


def _resample(image: sitk.Image, grid: Grid, outside: float) -> np.ndarray:
    """Interpolates an image linearly on another grid.

    Returns:
        (z, y, x), in the pixel type of `image`; `outside` where the image has no voxels.
    """
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, grid.direction, outside
        )
    )


def image_on_grid(image: sitk.Image, grid: Grid) -> NDArray[np.float32]:
    """Interpolates an image linearly on the network's grid.

    Returns:
        (z, y, x) float32; NaN outside of the image.
    """
    return _resample(image, grid, math.nan)


def labels_in(mask: sitk.Image) -> list[int]:
    """The labels of a mask, sorted, background included."""
    counts = np.zeros(LABEL_LEVELS, dtype=np.int64)
    # counted plane by plane, which takes a third of the time of np.unique
    for plane in sitk.GetArrayViewFromImage(mask):
        counts += np.bincount(plane.reshape(-1), minlength=LABEL_LEVELS)
    labels: list[int] = np.flatnonzero(counts).tolist()
    return labels


def mask_on_grid(mask: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
    """Resamples a mask to the network's grid, so that a thin structure beside a thick one is kept.

    Each label is interpolated linearly by itself, and the label with the largest share of a voxel wins.

    Returns:
        (z, y, x) uint8; 0 outside of the mask.
    """
    best = np.zeros(grid.shape, dtype=np.float32)
    result = np.zeros(grid.shape, dtype=np.uint8)
    for label in labels_in(mask):
        share = _resample(sitk.Cast(mask == label, sitk.sitkFloat32), grid, float(label == 0))
        larger = share > best
        result[larger] = label
        best[larger] = share[larger]
    return result


def probability_on_grid(probability: sitk.Image, grid: Grid, label: int) -> NDArray[np.float32]:
    """Interpolates the predicted probability of a class linearly on another grid, that of an image's file.

    Args:
        probability: SimpleITK image, float32, on the network's grid.
        grid: of the file.
        label: the class; 0 is background.

    Returns:
        (z, y, x) float32; outside of the network's grid everything is background.
    """
    return _resample(probability, grid, float(label == 0))
