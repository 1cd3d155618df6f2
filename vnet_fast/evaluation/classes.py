"""The classes that an evaluation measures."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import volumes
from vnet_fast.progress import track


def labels_in(masks: Iterable[Path]) -> set[int]:
    """The labels of masks, without 0; masks that can't be read are left out."""
    labels: set[int] = set()
    for path in track(masks, "reading labels", "masks"):
        with contextlib.suppress(InputError):
            # named, because a view of a temporary image would outlive its memory
            mask = volumes.read_mask(path)
            labels.update(np.unique(sitk.GetArrayViewFromImage(mask)).tolist())
    return labels - {0}


def choose_labels(declared: Iterable[int], referenced: Iterable[int], predicted: Iterable[int]) -> list[int]:
    """Chooses the labels to measure.

    A label that only predictions have, such as a stray voxel, is none of the data set's classes, unless no reference
    has any label: then the predictions' labels are all that there is.

    Args:
        declared: labels that the data set is known to have.
        referenced: labels that the reference masks have.
        predicted: labels that the predicted masks have.

    Returns:
        at least one label, sorted.
    """
    known = set(declared) | set(referenced)
    return sorted(known or set(predicted)) or [1]
