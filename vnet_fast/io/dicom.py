"""Reads folders of DICOM slices.

A folder must hold one complete series of one orientation, or one file of several frames. Every slice or frame is placed
by its own position, so that none is left out silently.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import formats
from vnet_fast.io.dicom_frames import read_frames
from vnet_fast.io.dicom_meta import CONTOURS, TRANSFER_SYNTAX, WITHOUT_PIXELS, kind_without_pixels, read_meta
from vnet_fast.io.formats import OWN_FOLDER
from vnet_fast.io.grid import Grid
from vnet_fast.io.header import MAX_SPACING, MIN_SPACING, scalar_volume_error
from vnet_fast.io.integrity import COPY_AGAIN
from vnet_fast.io.itk import file_reader, kept_locale, read_file

IMAGE_IO = "GDCMImageIO"
SERIES_TAG, FRAME_OF_REFERENCE_TAG, POSITION_TAG = "0020|000e", "0020|0052", "0020|0032"
# of the pixels in the patient, or of X-rays at the detector, of what was scanned, or in the plane of an RT image
SPACING_TAGS = ("0028|0030", "0018|1164", "0018|2010", "3002|0011")
GAP_TAG, THICKNESS_TAG, FRAMES_TAG = "0018|0088", "0018|0050", "0028|0008"
# a slice may lie this far from its regular position, as a share of the spacing
SLICE_TOLERANCE = 0.05
# plus this, mm: positions are often rounded to a tenth, both the slice's and those it is compared with
ROUNDING = 0.1
# largest difference between the slices' direction cosines
DIRECTION_TOLERANCE = 1e-3
# largest sideways shift from the first slice to the last, as a share of their distance
SHEAR_TOLERANCE = 0.01


@dataclass(frozen=True)
class _Slice:
    """The header of a slice: spacing and origin in mm, x y z; the columns of `axes` are its unit vectors.

    Args:
        frame: the number of the slice in its file, if that describes several.
        has_spacing: whether it states the spacing of its pixels.
        is_placed: whether it states its position.
    """

    path: Path
    series: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    axes: np.ndarray
    has_spacing: bool
    is_placed: bool
    frame: int | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name if self.frame is None else f"frame {self.frame + 1} of {self.path.name}"


def read_series(folder: Path) -> sitk.Image:
    """Reads the volume of a folder of DICOM slices.

    Raises:
        InputError: if there are no slices, several series or several orientations; or if a slice is damaged,
            missing, or shifted against the others.
    """
    slices = _sorted_slices(folder)
    grid = _grid_of(slices)
    volume = _stack_slices(slices) if len(slices) > 1 else read_file(slices[0].path, IMAGE_IO)
    volume.SetSpacing(grid.spacing)
    volume.SetOrigin(grid.origin)
    volume.SetDirection(grid.direction)
    return volume


def read_grid(folder: Path) -> Grid:
    """Returns the grid of the volume of a folder, from the headers of its slices; an InputError as of `read_series`."""
    return _grid_of(_sorted_slices(folder))


def _grid_of(slices: Sequence[_Slice]) -> Grid:
    first, last, direction = slices[0], slices[-1], tuple(slices[0].axes.ravel().tolist())
    if len(slices) == 1:
        # frames in descending order have a negative distance, which ITK turns into their direction as it reads them
        x, y, z = first.spacing
        axes = first.axes * (1, 1, -1 if z < 0 else 1)
        return Grid(first.size, (x, y, abs(z)), first.origin, tuple(axes.ravel().tolist()))
    gap = float(first.axes[:, 2] @ (np.array(last.origin) - np.array(first.origin))) / (len(slices) - 1)
    return Grid((*first.size[:2], len(slices)), (*first.spacing[:2], gap), first.origin, direction)


def sorted_files(folder: Path) -> list[Path]:
    """Returns the files of a series in the order of its slices; an InputError as of `read_series`."""
    return list(dict.fromkeys(header.path for header in _sorted_slices(folder)))


def _sorted_slices(folder: Path) -> list[_Slice]:
    slices = [_read_slice_header(path) for path in formats.slices_of(folder)]
    if not slices:
        raise InputError(folder, "a folder without a DICOM series", "Name a volume or a DICOM folder")
    if len(slices) == 1 and slices[0].size[2] > 1:
        slices = _frames(slices[0])
    if len(slices) == 1:
        _check_spacing(slices[0])
    else:
        _check_same_geometry(folder, slices)
        normal = slices[0].axes[:, 2]
        slices.sort(key=lambda header: float(normal @ header.origin))
        _check_positions(folder, slices, normal)
    return slices


def _frames(header: _Slice) -> list[_Slice]:
    """The frames of a file as slices; the file alone if it does not describe them, as ITK places them."""
    frames = read_frames(header.path, header.size[2])
    if frames is None:
        return [header]
    size, spacing = (*header.size[:2], 1), (*frames.spacing, header.spacing[2])
    alike = replace(header, size=size, spacing=spacing, axes=frames.axes)
    return [replace(alike, origin=origin, frame=number) for number, origin in enumerate(frames.positions)]


def frame_of_reference(folder: Path) -> str:
    """Returns the identifier of a series' frame of reference; empty if its first file has none."""
    return _tag(_information(formats.slices_of(folder)[0]), FRAME_OF_REFERENCE_TAG)


def single_file_error(path: Path) -> InputError:
    """Returns the error for a DICOM file that is named by itself, where its folder should be."""
    if not formats.is_dicom_file(path):
        return InputError(path, "truncated or damaged: it is not a DICOM file", COPY_AGAIN)
    if TRANSFER_SYNTAX not in read_meta(path)[0]:
        # ITK may search such a file for half a minute
        return InputError(path, "truncated or damaged: it can't be read as a DICOM slice", COPY_AGAIN)
    try:
        count = _read_slice_header(path).size[2]
    except InputError as error:
        return error
    if count > 1:
        cause = f"a DICOM file of {count} slices, which is read from its folder"
        return InputError(path, cause, "Put it into a folder of its own, and name the folder")
    return InputError(path, "a DICOM slice, not a volume", "Name the folder of its series")


def _stack_slices(slices: list[_Slice]) -> sitk.Image:
    """Returns the voxels of all slices, in the smallest pixel type that holds them, without their placement."""
    if slices[0].frame is not None:
        whole = read_file(slices[0].path, IMAGE_IO)
        order = [header.frame or 0 for header in slices]
        return sitk.GetImageFromArray(sitk.GetArrayViewFromImage(whole)[order])
    voxels = np.empty(0)
    # ITK's reader of series would not say which slice is damaged; of the slices, one at a time is in memory
    for index, header in enumerate(slices):
        image = read_file(header.path, IMAGE_IO)
        values = sitk.GetArrayViewFromImage(image)[0]
        if index == 0:
            voxels = np.empty((len(slices), *values.shape), values.dtype)
        voxels = voxels.astype(np.result_type(voxels, values), copy=False)
        voxels[index] = values
    return sitk.GetImageFromArray(voxels)


def _information(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of a slice."""
    if formats.is_segmentation(path):
        raise InputError(path, "a DICOM Segmentation, which is a mask, not a volume", "Name the folder of its series")
    reader = file_reader(path, IMAGE_IO)
    try:
        with kept_locale():
            reader.ReadImageInformation()
    except RuntimeError:
        raise _unreadable(path) from None
    return reader


def _unreadable(path: Path) -> InputError:
    """The error for a DICOM file that ITK can't read: objects of some kinds are sound, but no image."""
    kind = kind_without_pixels(path)
    if kind is None:
        return InputError(path, "truncated or damaged: it can't be read as a DICOM slice", COPY_AGAIN)
    remedy = "Take it out of the folder"
    if kind == CONTOURS:
        remedy += "; its contours are not read: for a mask, export a DICOM Segmentation"
    return InputError(path, f"{WITHOUT_PIXELS[kind]}, not an image", remedy)


def _tag(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _read_slice_header(path: Path) -> _Slice:
    reader = _information(path)
    series = _tag(reader, SERIES_TAG)
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        remedy = "Take it out of the folder"
        raise scalar_volume_error(path, reader.GetSize(), reader.GetNumberOfComponents(), remedy)
    # one of frames states its geometry in groups, which are not among ITK's tags
    has_frames = bool(_tag(reader, FRAMES_TAG))
    has_spacing = has_frames or any(_tag(reader, tag) for tag in SPACING_TAGS)
    is_placed = has_frames or bool(_tag(reader, POSITION_TAG))
    size, spacing, axes = reader.GetSize(), _spacing_of(reader), np.array(reader.GetDirection()).reshape(3, 3)
    return _Slice(path, series, size, spacing, reader.GetOrigin(), axes, has_spacing, is_placed)


def _spacing_of(reader: sitk.ImageFileReader) -> tuple[float, float, float]:
    """The spacing of a slice, which is as thick as it says where it says no distance to others."""
    x, y, z = reader.GetSpacing()
    if reader.GetSize()[2] == 1 and not _tag(reader, GAP_TAG):
        with contextlib.suppress(ValueError):
            thickness = float(_tag(reader, THICKNESS_TAG))
            z = thickness if MIN_SPACING <= thickness <= MAX_SPACING else z
    return x, y, z


def _check_spacing(header: _Slice) -> None:
    if not header.has_spacing:
        raise InputError(header.path, "does not state the spacing of its pixels", "Export the whole series again")


def _check_same_geometry(folder: Path, slices: list[_Slice]) -> None:
    """Raises an InputError unless all are single slices of one series, size, spacing and orientation."""
    first = slices[0]
    series = {header.series for header in slices}
    if len(series) > 1:
        raise InputError(folder, f"{len(series)} DICOM series", OWN_FOLDER)
    for header in slices:
        example = f"for example {first.name} and {header.name}"
        if header.size[2] != 1:
            raise InputError(header.path, "holds several slices, but other files are beside it", OWN_FOLDER)
        _check_spacing(header)
        if not header.is_placed:
            raise InputError(header.path, "does not state its position", "Export the whole series again")
        if header.size != first.size or not np.allclose(header.spacing[:2], first.spacing[:2], rtol=1e-3):
            raise InputError(folder, f"its slices differ in size or spacing, {example}", OWN_FOLDER)
        if not np.allclose(header.axes, first.axes, rtol=0, atol=DIRECTION_TOLERANCE):
            remedy = "Give each orientation a folder of its own"
            raise InputError(folder, f"its slices differ in orientation, {example}", remedy)


def _check_positions(folder: Path, slices: list[_Slice], normal: np.ndarray) -> None:
    """Raises an InputError unless the slices are evenly spaced: a missing one would shift all that follow.

    Args:
        folder: of the slices, for messages.
        slices: sorted by position.
        normal: unit vector across the slices.
    """
    positions = np.array([header.origin for header in slices])
    gaps = np.diff(positions @ normal)
    typical, count = float(np.median(gaps)), len(slices)
    if gaps.min() <= 0:
        index = int(gaps.argmin())
        cause = f"{slices[index].name} and {slices[index + 1].name} have the same position"
        remedy = "Give each image of a time series or repetition a folder of its own"
        remedy = remedy if slices[index].frame is None else "Convert it to a file for each volume"
        raise InputError(folder, cause, remedy)
    extent = positions[-1] - positions[0]
    distance = float(normal @ extent)
    if np.linalg.norm(extent - distance * normal) > SHEAR_TOLERANCE * distance:
        cause = "each slice is shifted against the one before, as with a tilted gantry"
        raise InputError(folder, cause, "Resample it onto perpendicular axes")
    deviations = positions - np.linspace(positions[0], positions[-1], count)
    if np.linalg.norm(deviations, axis=1).max() > SLICE_TOLERANCE * typical + ROUNDING:
        sideways = np.linalg.norm(deviations - np.outer(deviations @ normal, normal), axis=1)
        if sideways.max() > np.abs(deviations @ normal).max():
            index = int(sideways.argmax())
            cause = f"{slices[index].name} is shifted {sideways[index]:.3g} mm sideways against the others"
        else:
            index = int(np.argmax(np.abs(gaps - typical)))
            numbers, gap = f"slices {index + 1} and {index + 2} of {count}", gaps[index]
            cause = f"{numbers} are {gap:.3g} mm apart, the others {typical:.3g} mm"
        raise InputError(folder, cause, "Export the whole series again")
