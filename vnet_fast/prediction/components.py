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
        # the box bounds the memory, four bytes a voxel
        components, _ = ndimage.label(mask[box] == label, NEIGHBOURS)
        sizes = np.bincount(components.ravel())
        kept[box][components == 1 + sizes[1:].argmax()] = label
    return kept
