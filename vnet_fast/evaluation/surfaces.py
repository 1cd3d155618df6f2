"""How far the boundaries of two masks lie from one another.

The boundary of a mask is its voxels with a face neighbour outside of it; beyond the volume's border is
outside. Distances are between voxels' centres. MONAI's `get_mask_edges` and `get_surface_distance` define
both the same way.
"""

import numpy as np

# in float32 whole numbers are exact to 2^24: 4096 voxels of this many units
MAX_UNITS = 4096
# relative; 5e-6 mm of 100
SPACING_ERROR = 5e-8


def boundary_distances(prediction, reference, spacing):
    """The distance of each boundary voxel of one mask from the other's boundary, both ways.

    Args:
        prediction, reference: (z, y, x) bool arrays of one shape, neither of them empty.
        spacing: mm, x y z.

    Returns:
        (from the prediction's boundary, from the reference's), float64 arrays, mm; within 1e-5 mm up to
        100 mm; more only if all three spacings differ and have many digits, then 1e-7 of the masks' extent.
    """
    box = _bounding_box(prediction | reference)
    steps, unit = _whole_steps(spacing)
    # the rim makes what lies beyond the volume's border outside
    boundaries = [_boundary(np.pad(mask[box], 1), steps) for mask in (prediction, reference)]
    return tuple(unit * _distances(*pair) for pair in (boundaries, reversed(boundaries)))


def _bounding_box(mask):
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        touched = np.flatnonzero(mask.any(axis=others))
        box.append(slice(touched[0], touched[-1] + 1))
    return tuple(box)


def _whole_steps(spacing):
    """The spacing in a unit of which it is whole numbers, if there is one; otherwise the finest is one unit.

    The map of distances reckons voxels' places in float32: in mm they are off by 3e-5 mm at 300 mm.

    Returns:
        (spacing in units, the unit in mm).
    """
    finest = min(spacing)
    units = np.arange(1, MAX_UNITS + 1)
    steps = units[:, None] * (np.array(spacing, dtype=np.float64) / finest)
    error = np.abs(steps / steps.round() - 1).max(axis=1)
    best = error.argmin()
    if error[best] > SPACING_ERROR:
        return steps[0], finest
    return steps[best].round(), finest / units[best]


def _boundary(mask, spacing):
    """An image that is 1 on the mask's boundary."""
    # imported here: training needs Dice alone, and no image library
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing])
    return sitk.BinaryContour(image, fullyConnected=False, backgroundValue=0, foregroundValue=1)


def _distances(boundary, other):
    """From each voxel of a boundary to the nearest of another, in the images' unit."""
    import SimpleITK as sitk

    squares = sitk.SignedMaurerDistanceMap(other, insideIsPositive=False, squaredDistance=True, useImageSpacing=True)
    on_boundary = sitk.GetArrayViewFromImage(boundary) > 0
    # on the other boundary itself the map is 0 but for rounding, with the sign of the inside
    return np.sqrt(np.maximum(sitk.GetArrayViewFromImage(squares)[on_boundary], 0), dtype=np.float64)
