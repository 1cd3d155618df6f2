"""The labels of masks as arrays."""

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray


def label_array(mask: sitk.Image, binary: bool, ignored: int | None = None) -> NDArray[np.uint8]:
    """A mask's labels as a (z, y, x) array: 0 where they are `ignored`, and 1 elsewhere above 0 if `binary`."""
    labels = np.array(sitk.GetArrayViewFromImage(mask))
    if ignored is not None:
        labels[labels == ignored] = 0
    return np.minimum(labels, 1) if binary else labels


def label_arrays(
    prediction: sitk.Image, reference: sitk.Image, binary: bool, ignored: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The labels of a prediction and of its reference, both 0 where the reference has a label that does not count.

    Args:
        prediction, reference: on one grid.
        binary: whether all labels above 0 are 1.
        ignored: the label that does not count, or None.
    """
    if ignored is None:
        return label_array(prediction, binary), label_array(reference, binary)
    counted = label_array(reference, binary=False) != ignored
    return label_array(prediction, binary) * counted, label_array(reference, binary) * counted
