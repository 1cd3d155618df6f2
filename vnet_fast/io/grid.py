"""The network's grid: where it lies in a volume, and how volumes, masks and predictions get onto it and back.

Arrays are (z, y, x); sizes, spacings and origins are x y z, in mm.
"""

import math
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

GEOMETRY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in space: sizes and mm in order x y z, direction row by row."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image):
        """The grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def image_from(self, array):
        """A SimpleITK image of a (z, y, x) array on this grid."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def working_grid(image, spacing, size):
    """The grid that the network works on: centred on the image, along its axes in the order and
    sense of left, posterior, superior.

    Args:
        image: 3-D SimpleITK image.
        spacing: mm, x y z.
        size: voxels, x y z.

    Returns:
        Grid. Along an axis that already has the spacing its voxels coincide with the image's.
    """
    file = Grid.of(sitk.DICOMOrient(image, "LPS"))
    first = []
    for file_size, file_spacing, new_size, new_spacing in zip(file.size, file.spacing, size, spacing, strict=True):
        ratio = new_spacing / file_spacing
        start = (file_size - 1) / 2 - (new_size - 1) / 2 * ratio
        first.append(math.floor(start) if math.isclose(ratio, 1, rel_tol=1e-6) else start)
    axes = np.array(file.direction).reshape(3, 3)
    origin = np.array(file.origin) + axes @ (np.array(first) * file.spacing)
    return Grid(tuple(size), tuple(map(float, spacing)), tuple(map(float, origin)), file.direction)


def covered_share(image, grid):
    """The share of the image's volume, 0 to 1, that lies on the working grid, for each of its axes
    left, posterior, superior.
    """
    file = Grid.of(sitk.DICOMOrient(image, "LPS"))
    extents = zip(file.size, file.spacing, grid.size, grid.spacing, strict=True)
    return tuple(min(1.0, n * s / (fn * fs)) for fn, fs, n, s in extents)


def covering_size(image, grid):
    """The size, x y z, with which the working grid would cover the whole image; its own along the
    axes where it already covers all but 1e-3.
    """
    return tuple(
        size if share >= 1 - GEOMETRY_TOLERANCE else math.ceil(size / share - GEOMETRY_TOLERANCE)
        for size, share in zip(grid.size, covered_share(image, grid), strict=True)
    )


def _resampled(image, grid, outside):
    """Linear interpolation on another grid: SimpleITK image in the pixel type of `image`."""
    return sitk.Resample(
        image, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, grid.direction, outside
    )


def image_on_grid(image, grid):
    """(z, y, x) float32, linearly interpolated; NaN outside of the image."""
    return sitk.GetArrayFromImage(_resampled(image, grid, math.nan))


def mask_on_grid(mask, grid):
    """(z, y, x) uint8: each label interpolated linearly, then the largest, so that a thin structure
    survives beside a thick one.
    """
    labels = np.unique(sitk.GetArrayViewFromImage(mask))
    best = np.zeros(grid.size[::-1], dtype=np.float32)
    result = np.zeros(grid.size[::-1], dtype=np.uint8)
    for label in labels.tolist():
        share = sitk.GetArrayFromImage(_resampled(sitk.Cast(mask == label, sitk.sitkFloat32), grid, float(label == 0)))
        larger = share > best
        result[larger] = label
        best[larger] = share[larger]
    return result


def probabilities_on_image(probabilities, grid, image):
    """A prediction on the image's own grid, linearly interpolated.

    Args:
        probabilities: (K, z, y, x) float32 on `grid`, class 0 is background.
        grid: the Grid that they are on.
        image: SimpleITK image.

    Returns:
        (K, z, y, x) float32 on the image's grid; outside of `grid` all is background.
    """
    file = Grid.of(image)
    return np.stack(
        [
            sitk.GetArrayFromImage(_resampled(grid.image_from(p), file, float(k == 0)))
            for k, p in enumerate(probabilities)
        ]
    )
