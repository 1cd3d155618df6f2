"""The files of predicted probabilities beside a mask: their names, and how they are read."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io import formats, volumes

# of the mask of a folder of DICOM slices
DICOM_OUTPUT = ".nii.gz"
# at the end of the name of a file beside the mask
ENTROPY, PROBABILITY = "_entropy", "_probability"
# of a mask
MAX_LABEL = 255
PREDICT_AGAIN = "Predict again with --probabilities"
# of interpolation in float32
ROUNDING = 1e-5


def probability_endings(count: int) -> list[str]:
    """What the names of the files with the probabilities of foreground classes or regions end in."""
    return [PROBABILITY] if count == 1 else [f"{PROBABILITY}_{number}" for number in range(1, count + 1)]


def beside(mask: Path, ending: str) -> Path:
    """The file of a map beside its mask."""
    suffix = formats.suffix_of(mask)
    stem = formats.stem_of(mask) if suffix else mask.stem
    return mask.with_name(f"{stem}{ending}{suffix or DICOM_OUTPUT}")


def probability_file(mask: Path, number: int, count: int) -> Path:
    """The file of the probability of a class or region beside a mask.

    Args:
        mask: path of the mask.
        number: of the class or region, from 1 on.
        count: how many there are; a single one is not numbered.
    """
    return beside(mask, probability_endings(count)[number - 1])


def find_probabilities(mask: Path) -> list[Path]:
    """The files of the probabilities beside a mask, by the number of the class or region.

    Raises:
        InputError: if there are none, if one is missing, if there are those of a network with one class too, or if
            they are a DICOM Segmentation, which has only 8 bits for each.
    """
    single, *numbered = (beside(mask, ending) for ending in (PROBABILITY, *probability_endings(MAX_LABEL)))
    found = [path for path in numbered if path.exists()]
    if not single.exists():
        fractional = mask.with_name(f"{mask.stem}{PROBABILITY}{mask.suffix}")
        if not found and formats.is_segmentation(fractional):
            cause = f"the probabilities beside it are a DICOM Segmentation ({fractional.name}), which is not read"
            raise InputError(mask, cause, "Predict without --dicom-seg, and to a NIfTI file or a folder")
        if not found:
            raise InputError(mask, "no probabilities beside it", "Predict with --probabilities")
        missing = next((path for path in numbered[: numbered.index(found[-1])] if path not in found), None)
        if missing:
            raise InputError(missing, f"missing, and there is {found[-1].name}", PREDICT_AGAIN)
        return found
    if found:
        cause = f"has probabilities of two networks beside it, {single.name} and {found[0].name}"
        raise InputError(mask, cause, "Delete the older ones")
    return [single]


def missing_file(mask: Path, count: int) -> Path:
    """The first file that is missing beside a mask which should have so many probabilities."""
    expected = [probability_file(mask, number, count) for number in range(1, count + 1)]
    return next((path for path in expected if not path.exists()), expected[-1])


def read_probability(path: Path, mask: sitk.Image, mask_path: Path) -> NDArray[np.float32]:
    """Reads the probability of a class or region.

    Args:
        path: of its file.
        mask: on whose grid it must be.
        mask_path: of the mask, for messages.

    Returns:
        (z, y, x) float32, 0 to 1.

    Raises:
        InputError: if the file can't be read, is on another grid, or has values below 0 or above 1.
    """
    image = volumes.read_image(path)
    volumes.check_same_grid(path, image, mask, mask_path, PREDICT_AGAIN)
    values: NDArray[np.float32] = sitk.GetArrayFromImage(image)
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise InputError(path, f"has values from {low:g} to {high:g}, which are no probabilities", "Name another file")
    return values.clip(0, 1)
