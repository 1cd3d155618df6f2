"""Reads volumes and masks with SimpleITK, and checks what is read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.errors import InputError
from vnet_fast.io import dicom, dicom_seg, dicom_seg_grid, formats
from vnet_fast.io.grid import GEOMETRY_TOLERANCE, Grid
from vnet_fast.io.header import check_agreement, check_placement, format_numbers, not_finite, scalar_volume_error
from vnet_fast.io.integrity import check_regular
from vnet_fast.io.itk import read_file, return_freed_memory

MAX_LABEL = 255
# voxels of a volume beside which freed copies of it count; beside smaller ones they stay for the network
LARGE = 1 << 26


def read_image(path: str | Path) -> sitk.Image:
    """Reads a volume of intensities.

    Args:
        path: of a file in one of `formats.SUFFIXES`, or of a folder with one DICOM series.

    Returns:
        3-D SimpleITK image, float32; all voxels are finite.

    Raises:
        InputError: if it is missing, damaged, not a 3-D volume with one value per voxel, or holds NaN or infinity.
    """
    return as_intensities(path, _read(Path(path)))


def read_grid(path: str | Path) -> Grid:
    """Returns the grid of a volume from its header, without its voxels.

    Args:
        path: as for `read_image`, also of a 4-D NIfTI file.

    Raises:
        InputError: if the header is missing, damaged or not that of 3-D volumes.
    """
    path = Path(path)
    if path.is_dir() and formats.suffix_of(path) is None:
        return dicom.read_grid(path)
    _check_file(path)
    header = formats.read_header(path)
    placement = header.placements[0]
    return Grid(header.size, placement.spacing, placement.origin, placement.direction)


def read_channels(paths: Sequence[Path]) -> list[sitk.Image]:
    """Reads the channels of a volume, which must lie on one grid.

    Args:
        paths: of a file for each channel, as for `read_image`; or of a single one, which may be a 4-D NIfTI file with
            all of them.

    Returns:
        a 3-D SimpleITK image for each channel, float32; all voxels are finite.

    Raises:
        InputError: as `read_image`; also if a channel's size, spacing, origin or direction differ from those of the
            first one by more than 1e-3.
    """
    if len(paths) == 1:
        return [as_intensities(paths[0], image) for image in _read_several(paths[0])]
    images = [read_image(path) for path in paths]
    for path, image in zip(paths[1:], images[1:], strict=True):
        check_same_grid(path, image, images[0], paths[0], "Resample the channels to one grid")
    return images


def as_intensities(path: str | Path, image: sitk.Image) -> sitk.Image:
    """An image as float32; raises an InputError about `path` unless all its voxels are finite."""
    # ITK would copy an image of the same pixel type
    if image.GetPixelID() != sitk.sitkFloat32:
        return_memory_beside(image.GetNumberOfPixels())
        image = sitk.Cast(image, sitk.sitkFloat32)
    nans = infinite = 0
    # slice by slice, because what is computed of the whole volume at once takes a large share of its memory
    for values in sitk.GetArrayViewFromImage(image):
        if not np.isfinite(values).all():
            nans += int(np.isnan(values).sum())
            infinite += int(np.isinf(values).sum())
    if nans or infinite:
        raise not_finite(path, nans, infinite)
    return image


def return_memory_beside(voxels: int) -> None:
    """Returns to the system what was freed beside a volume of so many voxels, if it is large."""
    if voxels >= LARGE:
        return_freed_memory()


def read_mask(path: str | Path, image: sitk.Image | None = None, image_path: str | Path | None = None) -> sitk.Image:
    """Reads a mask.

    Args:
        path: as for `read_image`, or of a DICOM Segmentation, whose frames are placed on the image's grid.
        image: the SimpleITK image whose grid the mask must have, or None for any grid.
        image_path: path of the image, for messages.

    Returns:
        3-D SimpleITK image, uint8: labels, 0 is background.

    Raises:
        InputError: as `read_image`; also if a label is not a whole number from 0 to 255, or if size,
            spacing, origin or direction differ from the image's by more than 1e-3.
    """
    if formats.is_segmentation(path):
        return _read_segmentation(Path(path), image, image_path)
    mask = _read(Path(path))
    if mask.GetPixelID() != sitk.sitkUInt8:
        _check_labels(path, mask)
        mask = sitk.Cast(mask, sitk.sitkUInt8)
    if image is not None:
        check_same_grid(path, mask, image, image_path, "Export the mask on the grid of its image")
    return mask


def read_masks(path: str | Path, reference_path: str | Path) -> tuple[sitk.Image, sitk.Image]:
    """Reads a predicted mask and its reference, as `read_mask`, which must lie on one grid.

    A DICOM Segmentation is placed on the grid of the other mask. Two of them are placed on a grid that holds both.
    """
    if not formats.is_segmentation(reference_path):
        reference = read_mask(reference_path)
        return read_mask(path, reference, reference_path), reference
    if not formats.is_segmentation(path):
        mask = read_mask(path)
        return mask, read_mask(reference_path, mask, path)
    contents = [dicom_seg.read_content(Path(file)) for file in (path, reference_path)]
    ours, theirs = (content.frame_of_reference for content in contents)
    _check_frame_of_reference(path, ours, theirs, Path(reference_path).name)
    grid = dicom_seg_grid.own_grid(contents[::-1])
    mask, reference = (dicom_seg_grid.place(content, grid) for content in contents)
    return mask, reference


def _read_segmentation(path: Path, image: sitk.Image | None, image_path: str | Path | None) -> sitk.Image:
    """Reads a DICOM Segmentation on the grid of an image, or on its own."""
    content = dicom_seg.read_content(path)
    if image is None:
        return dicom_seg_grid.place(content, dicom_seg_grid.own_grid([content]))
    name = "its image" if image_path is None else Path(image_path).name
    if image_path is not None and formats.is_dicom_folder(Path(image_path)):
        theirs = dicom.frame_of_reference(Path(image_path))
        _check_frame_of_reference(path, content.frame_of_reference, theirs, name)
    return dicom_seg_grid.place(content, Grid.of(image), name)


def _check_frame_of_reference(path: str | Path, ours: str, theirs: str, name: str) -> None:
    if ours and theirs and ours != theirs:
        cause = f"its frame of reference is {ours}, that of {name} is {theirs}"
        raise InputError(path, cause, "Name the segmentation of this volume")


def _check_labels(path: str | Path, mask: sitk.Image) -> None:
    """Raises an InputError unless all labels are whole numbers that a mask can have."""
    count, example = 0, None
    # slice by slice, as in `read_image`
    for values in sitk.GetArrayViewFromImage(mask):
        wrong = ~((values >= 0) & (values <= MAX_LABEL) & (values == np.trunc(values)))
        if wrong.any():
            example = values[wrong].flat[0] if example is None else example
            count += int(wrong.sum())
    if count:
        cause = f"{count} voxels have labels that are not whole numbers from 0 to {MAX_LABEL}"
        remedy = "Write a mask with 0 for background and 1, 2, … for the structures"
        raise InputError(path, f"{cause}, such as {example}", remedy)


def check_same_grid(
    path: str | Path, mask: sitk.Image, image: sitk.Image, image_path: str | Path | None, remedy: str
) -> None:
    """Raises an InputError with a remedy unless what was read from a path has the grid of an image."""
    of_mask, of_image = Grid.of(mask), Grid.of(image)
    for name in ("size", "spacing", "origin", "direction"):
        masks, images = getattr(of_mask, name), getattr(of_image, name)
        if not np.allclose(masks, images, rtol=0, atol=GEOMETRY_TOLERANCE):
            image_name = "its image" if image_path is None else Path(image_path).name
            cause = f"its {name} is {format_numbers(masks)}, that of {image_name} is {format_numbers(images)}"
            raise InputError(path, cause, remedy)


def _read(path: Path) -> sitk.Image:
    """The volume at a path, which must be a single one."""
    images = _read_several(path, at_most=1)
    return images[0]


def _read_several(path: Path, at_most: int | None = None) -> list[sitk.Image]:
    """The volumes of a file that may have several channels, on one grid."""
    if path.is_dir() and formats.suffix_of(path) is None:
        image = _to_three_axes(dicom.read_series(path), path)
        check_placement(path, Grid.of(image).placement)
        return [image]
    _check_file(path)
    header = formats.verify_volume(path)
    if at_most is not None and header.volumes > at_most:
        raise scalar_volume_error(path, (*header.size, header.volumes), 1)
    image = read_file(path, formats.format_of(path).image_io)
    if header.volumes == 1:
        images = [_to_three_axes(image, path)]
    else:
        images = [image[:, :, :, channel] for channel in range(header.volumes)]
    grid = Grid.of(images[0])
    check_agreement(path, header, grid.size, grid.placement)
    return images


def _check_file(path: Path) -> None:
    """Raises an InputError unless a path names a file that may be a volume by itself."""
    check_regular(path)
    if formats.is_meant_as_dicom(path):
        raise dicom.single_file_error(path)


def _to_three_axes(image: sitk.Image, path: Path) -> sitk.Image:
    """Drops a fourth axis of length one; raises an InputError unless the image is then a scalar volume."""
    if image.GetDimension() > 3 and set(image.GetSize()[3:]) == {1}:
        image = image[:, :, :, 0]
    channels = image.GetNumberOfComponentsPerPixel() * (2 if "complex" in image.GetPixelIDTypeAsString() else 1)
    if image.GetDimension() != 3 or channels != 1:
        raise scalar_volume_error(path, image.GetSize(), channels)
    return image
