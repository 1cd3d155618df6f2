"""Keeps the largest connected component of each label."""

import numpy as np
import SimpleITK as sitk


def largest_components(mask: np.ndarray) -> np.ndarray:
    """The mask with only the largest connected component of each label; 26 neighbours are connected.

    Args:
        mask: (z, y, x) uint8.

    Returns:
        (z, y, x) uint8.
    """
    kept = np.zeros_like(mask)
    for label in np.unique(mask[mask > 0]).tolist():
        components = sitk.ConnectedComponent(sitk.GetImageFromArray((mask == label).astype(np.uint8)), True)
        # a copy, because a view of this temporary image would outlive its memory
        ranks = sitk.GetArrayFromImage(sitk.RelabelComponent(components, sortByObjectSize=True))
        kept[ranks == 1] = label
    return kept
