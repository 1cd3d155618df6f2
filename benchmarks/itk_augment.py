"""Augmentation as in the authors' release, by SimpleITK, with the parameters of `training.draws.BatchParameters`."""

import numpy as np
import SimpleITK as sitk

from vnet_fast.ops.augment import CONTROL_POINTS, MESH, SPLINE_ORDER

# of the histogram matching
LEVELS, MATCH_POINTS = 1024, 7


def augment(image, mask, other, control_points, deformed):
    """A volume that is matched to the histogram of another volume and deformed.

    Args:
        image, other: (D, H, W) float32 arrays; the histogram of `other` is taken.
        mask: (D, H, W) uint8 array.
        control_points: (2, 5, 5, 5), see `training.draws.BatchParameters`.
        deformed: whether the volume is deformed.

    Returns:
        (image, mask), arrays of the same shapes and dtypes.
    """
    volume = sitk.HistogramMatching(
        sitk.GetImageFromArray(image), sitk.GetImageFromArray(other), LEVELS, MATCH_POINTS, True
    )
    if not deformed:
        return sitk.GetArrayFromImage(volume), mask
    transform = sitk.BSplineTransformInitializer(volume, [MESH] * 3, SPLINE_ORDER)
    along_z = np.zeros(CONTROL_POINTS**3)
    transform.SetParameters(np.concatenate([control_points.ravel(), along_z]).astype(float).tolist())
    results = []
    for array, interpolator in ((volume, sitk.sitkLinear), (sitk.GetImageFromArray(mask), sitk.sitkNearestNeighbor)):
        resampler = sitk.ResampleImageFilter()
        resampler.SetReferenceImage(volume)
        resampler.SetTransform(transform)
        resampler.SetInterpolator(interpolator)
        resampler.UseNearestNeighborExtrapolatorOn()
        results.append(sitk.GetArrayFromImage(resampler.Execute(array)))
    return tuple(results)
