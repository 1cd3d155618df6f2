"""Keeps the largest connected component of each label."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# 26 neighbours are connected
NEIGHBOURS = np.ones((3, 3, 3), bool)


def largest_components(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask with only the largest connected component of each label; 26 neighbours are connected.

    Args:
        mask: (z, y, x) uint8.

    Returns:
        (z, y, x) uint8. Of components of one size, the first in memory is kept.
    """
    kept = np.zeros_like(mask)
    for label, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        # five bytes for each voxel of the box; what follows goes slice by slice, because NumPy counts in eight bytes
        components, count = ndimage.label(mask[box] == label, NEIGHBOURS)
        sizes = np.zeros(count + 1, np.int64)
        for part in components:
            if count < part.size:
                sizes += np.bincount(part.ravel(), minlength=count + 1)
            else:
                present, numbers = np.unique(part, return_counts=True)
                sizes[present] += numbers
        largest = 1 + sizes[1:].argmax()
        for part, target in zip(components, kept[box], strict=True):
            target[part == largest] = label
    return kept
