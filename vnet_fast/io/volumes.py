"""Volumes and their geometry, by SimpleITK: read, check, resample to the network's grid and back,
write. Arrays are (z, y, x); sizes, spacings and origins are x y z, in mm.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import dicom, formats
from vnet_fast.io.grid import GEOMETRY_TOLERANCE, Grid
from vnet_fast.io.header import check_agreement, check_placement, words
from vnet_fast.io.itk import called, check_name, file_reader, kept_locale

MAX_LABEL = 255
IMAGE_IO = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".mhd": "MetaImageIO",
    ".mha": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
}


def read_image(path):
    """A volume of intensities.

    Args:
        path: a file in one of `formats.SUFFIXES`, or a folder of one DICOM series.

    Returns:
        3-D SimpleITK image, float32, all voxels finite.

    Raises:
        InputError: if it is missing, damaged, not a 3-D volume of scalars, or holds NaN or Inf.
    """
    image = sitk.Cast(_read(Path(path)), sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    if not np.isfinite(values).all():
        cause = f"{np.isnan(values).sum()} voxels are NaN and {np.isinf(values).sum()} infinite"
        raise InputError(path, cause, "Export it again without them")
    return image


def read_mask(path, image=None, image_path=None):
    """The mask of a volume.

    Args:
        path: as for `read_image`.
        image: the SimpleITK image on whose grid the mask must lie, or None for any grid.
        image_path: its path, for messages.

    Returns:
        3-D SimpleITK image, uint8: labels, 0 is background.

    Raises:
        InputError: as `read_image`; if a label is no whole number from 0 to 255; or if size,
            spacing, origin or direction differ from the image's by more than 1e-3.
    """
    mask = _read(Path(path))
    values = sitk.GetArrayViewFromImage(mask)
    wrong = ~((values >= 0) & (values <= MAX_LABEL) & (values == np.trunc(values)))
    if wrong.any():
        raise InputError(
            path,
            f"{int(wrong.sum())} voxels have labels that are no whole number from 0 to {MAX_LABEL}, "
            f"such as {values[wrong].flat[0]}",
            "Write a mask with 0 for background and 1, 2, … for the structures",
        )
    mask = sitk.Cast(mask, sitk.sitkUInt8)
    if image is None:
        return mask
    ours, theirs = Grid.of(mask), Grid.of(image)
    for name in ("size", "spacing", "origin", "direction"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if not np.allclose(a, b, rtol=0, atol=GEOMETRY_TOLERANCE):
            cause = f"its {name} is {words(a)}, that of {Path(image_path).name} is {words(b)}"
            raise InputError(path, cause, "Export the mask on the grid of its image")
    return mask


def _read(path):
    if path.is_dir() and formats.suffix_of(path) is None:
        image = _three_dimensional(dicom.read(path), path)
        check_placement(path, Grid.of(image))
        return image
    header = formats.check(path)
    image = called(file_reader(path, IMAGE_IO[formats.suffix_of(path)]).Execute, path)
    image = _three_dimensional(image, path)
    check_agreement(path, header, Grid.of(image))
    return image


def _three_dimensional(image, path):
    if image.GetDimension() > 3 and set(image.GetSize()[3:]) == {1}:
        image = image[:, :, :, 0]
    numbers = image.GetNumberOfComponentsPerPixel() * (2 if "complex" in image.GetPixelIDTypeAsString() else 1)
    if image.GetDimension() != 3 or numbers != 1:
        cause = f"not a volume of scalars but {image.GetDimension()}-D with {numbers} numbers a voxel"
        raise InputError(path, cause, "Name a 3-D volume")
    return image


def write(array, image, path):
    """Writes an array on the grid of `image`, compressed, so that `path` always holds a whole file:
    the one before, or the new one.

    Args:
        array: (z, y, x).
        image: the SimpleITK image whose grid it has.
        path: in one of `formats.SUFFIXES`; its folder must exist.

    Raises:
        InputError: if the folder can't be written or the disk is full.
    """
    path = Path(path)
    check_name(path)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
        # ITK knows few suffixes in upper case
        header = folder / (formats.stem_of(path) + formats.suffix_of(path))
        with kept_locale():
            sitk.WriteImage(Grid.of(image).image_from(array), str(header), useCompression=True)
        for part in folder.iterdir():
            if part != header:
                os.replace(part, path.parent / part.name)
        # a header goes last: it must not name data that is not there yet
        os.replace(header, path)
    except (OSError, RuntimeError) as error:
        reason = str(getattr(error, "strerror", None) or error).strip().splitlines()[-1]
        raise InputError(path, f"can't be written ({reason})", "Choose a folder with room and permission") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
