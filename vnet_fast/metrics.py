"""How well a mask agrees with a reference."""

import math

import numpy as np


def dice(prediction, reference):
    """Dice coefficient of two masks, 2|A∩B| / (|A| + |B|).

    Args:
        prediction, reference: bool arrays of one shape.

    Returns:
        0 to 1; 1 if both are empty.
    """
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


def hausdorff_distance(prediction, reference, spacing):
    """Hausdorff distance between the voxel centres of two masks.

    Args:
        prediction, reference: (z, y, x) bool arrays of one shape.
        spacing: mm, x y z.

    Returns:
        mm; 0 if both are empty, infinite if one is.
    """
    # imported here: training needs Dice alone, and no image library
    import SimpleITK as sitk

    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() == reference.any() else math.inf
    images = []
    for mask in (prediction, reference):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing([float(s) for s in spacing])
        images.append(image)
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    return measure.GetHausdorffDistance()


def dice_per_class(prediction, reference, num_classes):
    """Dice of each foreground class.

    Args:
        prediction, reference: integer arrays of labels, of one shape.
        num_classes: background included.

    Returns:
        list of num_classes - 1 numbers.
    """
    return [dice(prediction == k, reference == k) for k in range(1, num_classes)]
