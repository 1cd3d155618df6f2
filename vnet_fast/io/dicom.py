"""Folders of DICOM slices: one series, complete, of one orientation. The slices are looked at one by
one and sorted by their place, so that none is left out without a word.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import formats
from vnet_fast.io.integrity import COPY_AGAIN
from vnet_fast.io.itk import called, file_reader, kept_locale

IMAGE_IO = "GDCMImageIO"
SERIES = "0020|000e"
OWN_FOLDER = "Give each series a folder of its own"
EXPORT_AGAIN = "Export the whole series again"
# slices may lie off their even places by this share of the spacing
SLICE_TOLERANCE = 0.05
# and by this, mm: positions are often written to a tenth, of a slice and of the ends it is compared with
ROUNDING = 0.1
# cosines; and how far the slices may be shifted against each other, as a share of their distance
DIRECTION_TOLERANCE = 1e-3
SHEAR_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Slice:
    path: Path
    series: str
    size: tuple
    spacing: tuple
    origin: tuple
    axes: np.ndarray


def read(folder):
    """The volume of a folder of DICOM slices.

    Raises:
        InputError: if there are none, several series, several orientations, a slice that is damaged
            or missing, or slices that are shifted against each other.
    """
    slices = [_look(path) for path in formats.slices_of(folder)]
    if not slices:
        raise InputError(folder, "a folder without a DICOM series", "Name a volume or a DICOM folder")
    if len(slices) == 1:
        return called(file_reader(slices[0].path, IMAGE_IO).Execute, slices[0].path)
    _check_alike(folder, slices)
    normal = slices[0].axes[:, 2]
    slices.sort(key=lambda each: float(normal @ each.origin))
    _check_places(folder, slices, normal)
    # one by one: of a series, the reader would not say which slice is damaged
    images = [called(file_reader(each.path, IMAGE_IO).Execute, each.path) for each in slices]
    volume = sitk.GetImageFromArray(np.concatenate([sitk.GetArrayViewFromImage(image) for image in images]))
    first, last = (np.array(each.origin) for each in (slices[0], slices[-1]))
    gap = float(normal @ (last - first)) / (len(slices) - 1)
    volume.SetSpacing((*slices[0].spacing[:2], gap))
    volume.SetOrigin(slices[0].origin)
    volume.SetDirection(slices[0].axes.ravel().tolist())
    return volume


def _look(path):
    reader = file_reader(path, IMAGE_IO)
    try:
        with kept_locale():
            reader.ReadImageInformation()
    except RuntimeError:
        cause = "truncated or damaged: it can't be read as a slice of the series beside it"
        raise InputError(path, cause, COPY_AGAIN) from None
    series = reader.GetMetaData(SERIES).strip(" \0") if reader.HasMetaDataKey(SERIES) else ""
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        cause = f"not a slice of scalars but {reader.GetDimension()}-D with {reader.GetNumberOfComponents()} numbers"
        raise InputError(path, f"{cause} a voxel", "Take it out of the folder")
    axes = np.array(reader.GetDirection()).reshape(3, 3)
    return _Slice(path, series, reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), axes)


def _check_alike(folder, slices):
    first = slices[0]
    series = {each.series for each in slices}
    if len(series) > 1:
        raise InputError(folder, f"{len(series)} DICOM series", OWN_FOLDER)
    for each in slices:
        if each.size[2] != 1:
            raise InputError(each.path, "holds several slices, and other files are beside it", OWN_FOLDER)
        if each.size != first.size or not np.allclose(each.spacing[:2], first.spacing[:2], rtol=1e-3):
            cause = f"slices of several sizes or spacings, as {first.path.name} and {each.path.name}"
            raise InputError(folder, cause, OWN_FOLDER)
        if not np.allclose(each.axes, first.axes, rtol=0, atol=DIRECTION_TOLERANCE):
            cause = f"slices of several orientations, as {first.path.name} and {each.path.name}"
            raise InputError(folder, cause, "Give each orientation a folder of its own")


def _check_places(folder, slices, normal):
    """Slices must be evenly spaced: a missing one would shift all that follow."""
    places = np.array([each.origin for each in slices])
    gaps = np.diff(places @ normal)
    typical, count = float(np.median(gaps)), len(slices)
    if gaps.min() <= 0:
        at = int(gaps.argmin())
        cause = f"{slices[at].path.name} and {slices[at + 1].path.name} are in the same place"
        raise InputError(folder, cause, "Give each image of a time series or repetition a folder of its own")
    way = places[-1] - places[0]
    along = float(normal @ way)
    if np.linalg.norm(way - along * normal) > SHEAR_TOLERANCE * along:
        raise InputError(folder, "its slices are shifted against each other, as by a tilted gantry",
                         "Resample it onto perpendicular axes")  # fmt: skip
    off = places - np.linspace(places[0], places[-1], count)
    if np.linalg.norm(off, axis=1).max() > SLICE_TOLERANCE * typical + ROUNDING:
        beside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
        at = int(np.argmax(np.abs(gaps - typical)))
        cause = f"slices {at + 1} and {at + 2} of {count} are {gaps[at]:.3g} mm apart, the others {typical:.3g} mm"
        if beside.max() > np.abs(off @ normal).max():
            at = int(beside.argmax())
            cause = f"{slices[at].path.name} lies {beside[at]:.3g} mm beside the others"
        raise InputError(folder, cause, EXPORT_AGAIN)
