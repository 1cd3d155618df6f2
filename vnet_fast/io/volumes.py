"""Volumes and their geometry, by SimpleITK: read, check, resample to the network's grid and back,
write. Arrays are (z, y, x); sizes, spacings and origins are x y z, in mm.
"""

import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import dicom, formats
from vnet_fast.io.header import check_agreement, check_placement, words
from vnet_fast.io.itk import called, check_name, file_reader, kept_locale

GEOMETRY_TOLERANCE = 1e-3
MAX_LABEL = 255
IMAGE_IO = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".mhd": "MetaImageIO",
    ".mha": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
}


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels in space: sizes and mm in order x y z, direction row by row."""

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image):
        """The grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def image_from(self, array):
        """A SimpleITK image of a (z, y, x) array on this grid."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


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


def working_grid(image, spacing, size):
    """The grid that the network works on: centred on the image, along its axes in the order and
    sense of left, posterior, superior.

    Args:
        image: 3-D SimpleITK image.
        spacing: mm, x y z.
        size: voxels, x y z.

    Returns:
        Grid. Along an axis that already has the spacing its voxels coincide with the image's.
    """
    file = Grid.of(sitk.DICOMOrient(image, "LPS"))
    first = []
    for file_size, file_spacing, new_size, new_spacing in zip(file.size, file.spacing, size, spacing, strict=True):
        ratio = new_spacing / file_spacing
        start = (file_size - 1) / 2 - (new_size - 1) / 2 * ratio
        first.append(math.floor(start) if math.isclose(ratio, 1, rel_tol=1e-6) else start)
    axes = np.array(file.direction).reshape(3, 3)
    origin = np.array(file.origin) + axes @ (np.array(first) * file.spacing)
    return Grid(tuple(size), tuple(map(float, spacing)), tuple(map(float, origin)), file.direction)


def covered_share(image, grid):
    """The share of the image's volume, 0 to 1, that lies on the working grid, for each of its axes
    left, posterior, superior.
    """
    file = Grid.of(sitk.DICOMOrient(image, "LPS"))
    extents = zip(file.size, file.spacing, grid.size, grid.spacing, strict=True)
    return tuple(min(1.0, n * s / (fn * fs)) for fn, fs, n, s in extents)


def covering_size(image, grid):
    """The size, x y z, with which the working grid would cover the whole image; its own along the
    axes where it already covers all but 1e-3.
    """
    return tuple(
        size if share >= 1 - GEOMETRY_TOLERANCE else math.ceil(size / share - GEOMETRY_TOLERANCE)
        for size, share in zip(grid.size, covered_share(image, grid), strict=True)
    )


def _resampled(image, grid, outside):
    """Linear interpolation on another grid: SimpleITK image in the pixel type of `image`."""
    return sitk.Resample(
        image, grid.size, sitk.Transform(), sitk.sitkLinear, grid.origin, grid.spacing, grid.direction, outside
    )


def image_on_grid(image, grid):
    """(z, y, x) float32, linearly interpolated; NaN outside of the image."""
    return sitk.GetArrayFromImage(_resampled(image, grid, math.nan))


def mask_on_grid(mask, grid):
    """(z, y, x) uint8: each label interpolated linearly, then the largest, so that a thin structure
    survives beside a thick one.
    """
    labels = np.unique(sitk.GetArrayViewFromImage(mask))
    best = np.zeros(grid.size[::-1], dtype=np.float32)
    result = np.zeros(grid.size[::-1], dtype=np.uint8)
    for label in labels.tolist():
        share = sitk.GetArrayFromImage(_resampled(sitk.Cast(mask == label, sitk.sitkFloat32), grid, float(label == 0)))
        larger = share > best
        result[larger] = label
        best[larger] = share[larger]
    return result


def probabilities_on_image(probabilities, grid, image):
    """A prediction on the image's own grid, linearly interpolated.

    Args:
        probabilities: (K, z, y, x) float32 on `grid`, class 0 is background.
        grid: the Grid that they are on.
        image: SimpleITK image.

    Returns:
        (K, z, y, x) float32 on the image's grid; outside of `grid` all is background.
    """
    file = Grid.of(image)
    return np.stack(
        [
            sitk.GetArrayFromImage(_resampled(grid.image_from(p), file, float(k == 0)))
            for k, p in enumerate(probabilities)
        ]
    )


def largest_components(mask):
    """The mask with only the largest connected component (of 26 neighbours) of each label.

    Args:
        mask: (z, y, x) uint8.

    Returns:
        (z, y, x) uint8.
    """
    kept = np.zeros_like(mask)
    for label in np.unique(mask[mask > 0]).tolist():
        components = sitk.ConnectedComponent(sitk.GetImageFromArray((mask == label).astype(np.uint8)), True)
        components = sitk.GetArrayViewFromImage(sitk.RelabelComponent(components, sortByObjectSize=True))
        kept[components == 1] = label
    return kept


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
