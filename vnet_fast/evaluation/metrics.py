"""How well a mask agrees with a reference: overlap, distance of the boundaries, volume."""

import math
from dataclasses import dataclass

import numpy as np

from vnet_fast.evaluation.surfaces import boundary_distances


@dataclass(frozen=True)
class Metric:
    """One of the numbers that `measure` returns.

    Args:
        name: its key.
        title: for a reader.
        unit: "mm", "%", "ml", or "" for a fraction of 1.
        perfect: its value for a prediction that is the reference; None if there is none.
        better: "high", "low", or "zero" where either sign is worse; None if neither is.
    """

    name: str
    title: str
    unit: str
    perfect: float | None
    better: str | None


METRICS = (
    Metric("dice", "Dice", "", 1.0, "high"),
    Metric("jaccard", "Jaccard", "", 1.0, "high"),
    Metric("hausdorff_mm", "Hausdorff distance", "mm", 0.0, "low"),
    Metric("hausdorff_95_mm", "95 % Hausdorff distance", "mm", 0.0, "low"),
    Metric("average_boundary_distance_mm", "Average boundary distance", "mm", 0.0, "low"),
    Metric("relative_volume_difference_percent", "Relative volume difference", "%", 0.0, "zero"),
    Metric("absolute_relative_volume_difference_percent", "Absolute relative volume difference", "%", 0.0, "low"),
    Metric("prediction_ml", "Volume of the prediction", "ml", None, None),
    Metric("reference_ml", "Volume of the reference", "ml", None, None),
)


def measure(prediction, reference, spacing):
    """All metrics of one mask.

    Dice 2|A∩B| / (|A| + |B|), Jaccard |A∩B| / |A∪B|, and the relative volume difference
    100 (|A| - |B|) / |B| % of a prediction A and a reference B. Distances are those of each boundary voxel
    from the other mask's boundary (`surfaces`): the Hausdorff distance is the largest; its 95 % is the
    larger of the two 95th percentiles, from A to B and from B to A, interpolated linearly; the average
    boundary distance is the mean over the boundary voxels of both masks together.

    Args:
        prediction, reference: (z, y, x) bool arrays of one shape.
        spacing: mm, x y z.

    Returns:
        dict from the name of each of `METRICS`, in their order, to a float. If both masks are empty they
        agree: Dice and Jaccard 1, distances and differences 0. If one is empty: Dice and Jaccard 0,
        distances infinite, the relative volume difference -100 without a prediction and infinite without a
        reference.

    Raises:
        ValueError: if a mask is not bool, or the shapes differ.

    Source:
        The metrics of PROMISE12 (Litjens et al., Medical Image Analysis 18, 2014); where that leaves room,
        such as in what a boundary is, MONAI's definitions: `compute_hausdorff_distance`, also with
        `percentile=95`, and `compute_average_surface_distance` with `symmetric=True`. MONAI interpolates the
        percentile in float32, so that its 95 % of a whole prostate is off by up to 4e-5 mm.
    """
    _check(prediction, reference)
    ours, theirs = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    both = int(np.count_nonzero(prediction & reference))
    millilitres = math.prod(float(s) for s in spacing) / 1000
    difference = _relative_difference(ours, theirs)
    values = (
        dice(prediction, reference),
        both / (ours + theirs - both) if ours + theirs else 1.0,
        *_distances(prediction, reference, spacing),
        difference,
        abs(difference),
        ours * millilitres,
        theirs * millilitres,
    )
    return {metric.name: value for metric, value in zip(METRICS, values, strict=True)}


def dice(prediction, reference):
    """Dice coefficient of two masks, 2|A∩B| / (|A| + |B|).

    Args:
        prediction, reference: bool arrays of one shape.

    Returns:
        0 to 1; 1 if both are empty.
    """
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else 1.0


def dice_per_class(prediction, reference, num_classes):
    """Dice of each foreground class.

    Args:
        prediction, reference: integer arrays of labels, of one shape.
        num_classes: background included.

    Returns:
        list of num_classes - 1 numbers.
    """
    return [dice(prediction == k, reference == k) for k in range(1, num_classes)]


def hausdorff_distance(prediction, reference, spacing):
    """Hausdorff distance between the boundaries of two masks: the largest distance of a boundary voxel of
    one from the boundary of the other, between centres.

    Args:
        prediction, reference: (z, y, x) bool arrays of one shape.
        spacing: mm, x y z.

    Returns:
        mm; 0 if both are empty, infinite if one is.

    Raises:
        ValueError: if a mask is not bool, or the shapes differ.
    """
    _check(prediction, reference)
    return _distances(prediction, reference, spacing)[0]


def _check(prediction, reference):
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool or mask.ndim != 3:
            raise ValueError(f"{name} must be a (z, y, x) array of bool; got {mask.dtype} of shape {mask.shape}")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction must have shape {reference.shape} to match reference; got {prediction.shape}")


def _relative_difference(volume, reference_volume):
    """By how many per cent of the reference's volume a volume is larger."""
    if not reference_volume:
        return math.inf if volume else 0.0
    return 100 * (volume - reference_volume) / reference_volume


def _distances(prediction, reference, spacing):
    """(Hausdorff distance, its 95 %, average boundary distance), mm, of two masks that may be empty."""
    if not (prediction.any() and reference.any()):
        return (0.0 if prediction.any() == reference.any() else math.inf,) * 3
    distances = boundary_distances(prediction, reference, spacing)
    return (
        max(float(each.max()) for each in distances),
        max(float(np.percentile(each, 95)) for each in distances),
        float(np.concatenate(distances).mean()),
    )
