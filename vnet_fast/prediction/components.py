"""The labels of probabilities, and the largest connected component of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vnet_fast.regions import Region, label_table

# the probability above which a voxel belongs to a region
IS_INSIDE = 0.5
# 26 neighbours are connected
NEIGHBOURS = np.ones((3, 3, 3), bool)


def most_probable(probabilities: NDArray[np.float32], regions: Sequence[Region] = ()) -> NDArray[np.uint8]:
    """The most probable label of each voxel, or those of regions, with only the largest component of each.

    Args:
        probabilities: (K, z, y, x), of all labels, or of regions that may overlap.
        regions: what the probabilities are of, if they are of regions.

    Returns:
        (z, y, x) uint8.
    """
    if not regions:
        return largest_components(probabilities.argmax(0).astype(np.uint8))
    codes = np.zeros(probabilities.shape[1:], np.uint16)
    for number, probability in enumerate(probabilities):
        codes |= (largest_components((probability > IS_INSIDE).astype(np.uint8)) > 0).astype(np.uint16) << number
    return label_table(regions)[codes]


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
