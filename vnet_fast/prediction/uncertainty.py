"""How uncertain a network is about each voxel: the entropy of its probabilities."""

from collections.abc import Iterable, Sequence

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.special import entr

from vnet_fast.io.grid import Grid, probability_on_grid


def entropy_on_grid(
    probabilities: Sequence[sitk.Image], grid: Grid, slabs: Iterable[tuple[int, int]], regions: bool
) -> NDArray[np.float32]:
    """The entropy of the probabilities of each voxel, - sum p ln p, in nats.

    It is 0 where one class is certain, and ln K where all K classes are equally probable. Of regions, of which each is
    there or not, it is the mean of their binary entropies, which is at most ln 2.

    Args:
        probabilities: an image of each class, background included, or of each region, on the network's grid.
        grid: on which the probabilities are interpolated. Outside of the network's grid the background is certain.
        slabs: that cover the grid, each the first slice and the one behind it; memory is needed for one at a time.
        regions: whether the probabilities are of regions, which may overlap.

    Returns:
        (z, y, x) float32.
    """
    entropy = np.zeros(grid.shape, np.float32)
    for first, end in slabs:
        part = entropy[first:end]
        for number, image in enumerate(probabilities):
            probability = probability_on_grid(image, grid.slab(first, end), number + int(regions))
            # interpolation may round beyond 1
            np.minimum(probability, 1, out=probability)
            part += entr(probability)
            if regions:
                part += entr(1 - probability)
    if regions:
        entropy /= len(probabilities)
    return entropy
