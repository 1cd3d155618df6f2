"""Distances between the boundaries of two masks.

The boundary of a mask is the set of its voxels that have a face neighbour outside the mask. Everything beyond the
volume's border is outside. Distances are measured between the centres of voxels. MONAI's `get_mask_edges` and
`get_surface_distance` use the same definitions.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

# Boundaries that lie close together, as those of a prediction and its reference do, are compared faster by a search
# tree of their voxels than by a distance map of the volume. Trees that are not balanced search regular grids faster.
TREE_OPTIONS = {"balanced_tree": False, "compact_nodes": False, "leafsize": 16}
# For small masks, further threads take longer to start than they save.
THREADS = 2


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float, float]:
    """Computes the Hausdorff distance, its 95th percentile and the average boundary distance.

    The percentile is the larger one of the two directions, interpolated linearly.

    Args:
        prediction, reference: (z, y, x) bool arrays of the same shape.
        spacing: mm, x y z.

    Returns:
        three distances in mm: NaN if both masks are empty, infinite if one is.
    """
    if not (prediction.any() and reference.any()):
        distance = math.nan if prediction.any() == reference.any() else math.inf
        return distance, distance, distance
    distances = boundary_distances(prediction, reference, spacing)
    return (
        max(float(from_one.max()) for from_one in distances),
        max(float(np.percentile(from_one, 95)) for from_one in distances),
        float(np.concatenate(distances).mean()),
    )


def boundary_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distance from each boundary voxel of one mask to the other mask's boundary, in both directions.

    Args:
        prediction, reference: (z, y, x) bool arrays of the same shape, neither of them empty.
        spacing: mm, x y z.

    Returns:
        distances of the prediction's boundary voxels and of the reference's boundary voxels, mm, each in the order
        of the voxels in the array.
    """
    box = _bounding_box(prediction | reference)
    predicted, expected = (_boundary_positions(mask[box], spacing) for mask in (prediction, reference))
    return _distances_to_nearest(predicted, expected), _distances_to_nearest(expected, predicted)


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box of slices that contains all of the mask."""
    box = []
    for other_axes in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(mask.any(axis=other_axes))
        box.append(slice(occupied[0], occupied[-1] + 1))
    return tuple(box)


def _boundary_positions(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """The centres of the boundary voxels, (number of voxels, 3), mm, z y x."""
    boundary = mask & ~binary_erosion(mask)
    indices = np.unravel_index(np.flatnonzero(boundary), boundary.shape)
    return np.stack(indices, axis=1).astype(np.float64) * np.array(spacing[::-1], dtype=np.float64)


def _distances_to_nearest(positions: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance from each position to the nearest of the others."""
    distances, _ = KDTree(others, **TREE_OPTIONS).query(positions, workers=THREADS)
    return distances
