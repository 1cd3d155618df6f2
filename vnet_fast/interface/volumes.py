"""The volumes that can be segmented: files, SimpleITK images and arrays."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vnet_fast.data.channels import Channel, check_order
from vnet_fast.interface.options import PathLike
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid
from vnet_fast.io.header import check_placement
from vnet_fast.prediction.plan import volume_files

Volume: TypeAlias = "PathLike | sitk.Image | ArrayLike | Sequence[PathLike] | Sequence[sitk.Image]"
IMAGE, ARRAY = "the image", "the array"


@dataclass(frozen=True)
class Channels:
    """A volume in memory.

    Args:
        images: of its channels, 3-D, float32, finite, on one grid.
        names: what messages call each of them, or the volume.
        files: that they come from, absolute, one for each channel or for all; none for a volume that was in memory.
    """

    images: list[sitk.Image]
    names: list[str | Path]
    files: tuple[Path, ...] = ()


def read(volume: Volume, spacing: Sequence[float] | None, channels: Sequence[Channel]) -> Channels:
    """Reads a volume, or takes it from memory.

    Args:
        volume: a path, a SimpleITK image, an array or a MetaTensor of MONAI; or a sequence of paths or images, one for
            each channel.
        spacing: of the voxels of an array, mm, x y z; None for all else.
        channels: of the network.

    Raises:
        InputError, InputErrors: if it can't be read or used, see `vnet_fast.io.volumes.read_channels`.
        TypeError, ValueError: if it is nothing of that kind.
    """
    entries: list[Any] = list(volume) if isinstance(volume, list | tuple) else [volume]
    are_paths, are_images = ([isinstance(entry, kind) for entry in entries] for kind in (str | os.PathLike, sitk.Image))
    is_placed = isinstance(volume, Tensor) and hasattr(volume, "affine")
    if spacing is not None and (any(are_paths + are_images) or is_placed):
        raise TypeError("spacing is for an array; files, images and MONAI's tensors have their own")
    if entries and all(are_paths):
        return _of_files([Path(entry) for entry in entries], channels)
    if entries and all(are_images):
        return _of_images([channel for image in entries for channel in _channels_of(image)])
    if any(are_paths + are_images):
        raise TypeError("volume must be paths or images, not some of each")
    if isinstance(volume, Tensor):
        # NumPy takes it only from the host, without gradient, and knows no bfloat16
        tensor = volume.detach().to("cpu", torch.float32 if volume.dtype is torch.bfloat16 else None)
        if is_placed:
            return _of_monai(tensor)
        volume = tensor
    return _of_array(np.asarray(volume), spacing)


def _of_monai(tensor: Any) -> Channels:
    """MONAI's MetaTensor, (x, y, z) or (C, x, y, z), whose affine leads to right, anterior, superior."""
    if tensor.ndim not in (3, 4) or 0 in tensor.shape:
        raise ValueError(f"a MetaTensor must have shape (x, y, z) or (C, x, y, z); got {tuple(tensor.shape)}")
    if "LPS" in str(tensor.meta.get("space", "")):
        raise ValueError("a MetaTensor's affine must lead to RAS; got LPS. Load it with affine_lps_to_ras=True")
    if tensor.is_complex():
        raise TypeError(f"a MetaTensor must have real numbers; got {tensor.dtype}")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(tensor.affine, np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if affine.shape != (4, 4) or not (np.isfinite(affine).all() and (lengths > 0).all()):
        raise ValueError("a MetaTensor's affine must be finite and have three axes, in a matrix of 4 x 4")
    images = []
    for channel in tensor.as_tensor().numpy().reshape(-1, *tensor.shape[-3:]):
        # values that float32 can't hold are found there
        with np.errstate(over="ignore"):
            image = sitk.GetImageFromArray(channel.transpose(2, 1, 0).astype(np.float32))
        image.SetSpacing(lengths.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / lengths).ravel().tolist())
        images.append(image)
    return _of_images(images)


def _of_files(paths: list[Path], channels: Sequence[Channel]) -> Channels:
    check_order(str(paths[0]), channels)
    files = tuple(paths) if len(paths) > 1 else volume_files(paths[0], several=len(channels) > 1)
    # absolute, because the program may go to another folder before it writes a mask
    return Channels(volumes.read_channels(files), list(files), tuple(file.absolute() for file in files))


def _channels_of(image: sitk.Image) -> list[sitk.Image]:
    """The channels of an image: its components, or what lies along its fourth axis."""
    if image.GetDimension() not in (3, 4):
        raise ValueError(f"the image must have 3 dimensions, or 4 with the channels last; got {image.GetDimension()}")
    if 0 in image.GetSize():
        raise ValueError(f"the image must have voxels; got a size of {image.GetSize()}")
    kind, count = image.GetPixelIDTypeAsString(), image.GetNumberOfComponentsPerPixel()
    if "complex" in kind or "label" in kind or (image.GetDimension() == 4 and count != 1):
        raise TypeError(f"the image must have real numbers; got {kind}")
    if image.GetDimension() == 4:
        return [channel for number in range(image.GetSize()[3]) for channel in _channels_of(image[:, :, :, number])]
    if "vector" not in kind:
        return [image]
    return [sitk.VectorIndexSelectionCast(image, number) for number in range(count)]


def _of_images(images: list[sitk.Image]) -> Channels:
    names: list[str | Path] = [IMAGE] if len(images) == 1 else [f"channel {number}" for number in range(len(images))]
    # copies, whose voxels are shared until the program changes its own
    return _checked([sitk.Image(image) for image in images], names)


def _checked(images: list[sitk.Image], names: list[str | Path]) -> Channels:
    for name, image in zip(names, images, strict=True):
        check_placement(name, Grid.of(image).placement)
        volumes.check_same_grid(name, image, images[0], names[0], "Resample the channels to one grid")
    return Channels([volumes.as_intensities(*pair) for pair in zip(names, images, strict=True)], names)


def _of_array(array: NDArray[np.generic], spacing: Sequence[float] | None) -> Channels:
    if array.dtype.kind not in "buif":
        raise TypeError(f"volume must be a path, a SimpleITK image or an array of real numbers; got {array.dtype}")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"the array must have shape (z, y, x) or (C, z, y, x); got {array.shape}")
    if spacing is None or isinstance(spacing, str):
        raise TypeError("an array needs its spacing: spacing=(x, y, z), in mm")
    lengths = tuple(map(float, spacing))
    if len(lengths) != 3 or not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"spacing must be three numbers above 0, mm, (x, y, z); got {spacing}")
    x, y, z = lengths
    images = []
    for channel in array.reshape(-1, *array.shape[-3:]):
        # values that float32 can't hold are found there
        with np.errstate(over="ignore"):
            image = sitk.GetImageFromArray(channel.astype(np.float32))
        image.SetSpacing((x, y, z))
        images.append(image)
    names: list[str | Path] = [ARRAY if len(images) == 1 else f"channel {number}" for number in range(len(images))]
    return _checked(images, names)
