"""Finds, reads and writes volumes, and places the network's grid in them."""

import contextlib
import gzip
import math
import os
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
# of formats of two files, the one that has both in one
SINGLE = {".mhd": ".mha", ".nhdr": ".nrrd"}
# a channel with a file of its own
CHANNEL = re.compile(r"(.+)_(\d{4})")
POSITION, GAP, THICKNESS = "0020|0032", "0018|0088", "0018|0050"
# mm; and of slices, as a share of their distance, with the rounding of positions, mm
TOLERANCE, SLICE_TOLERANCE, ROUNDING = 1e-3, 0.05, 0.1
# a shift sideways from the first slice to the last, as a share of their distance
SHEAR_TOLERANCE = 0.01
# of a slice, mm
MIN_THICKNESS, MAX_THICKNESS = 1e-3, 1e3
# bytes that are read at once
CHUNK = 1 << 20
# of NIfTI: the first bytes of a header in that order, and the types of voxels that may be NaN, by code
LITTLE, FLOATS = b"\x5c\x01\0\0", {"16": "f4", "64": "f8"}
# of the names of masks: always, and beside the volume of the name without it
MASKS, MASKS_BESIDE = ("_segmentation", ".seg"), ("_seg", "_mask", "_label", "_labels", "_gt")

sitk.ProcessObject.SetGlobalWarningDisplay(False)


class InputError(Exception):
    """Something that the user can mend, in one line."""


class Grid(NamedTuple):
    """A grid of voxels: size, spacing and origin in the order x y z, in mm."""

    size: Sequence[int]
    spacing: Sequence[float]
    origin: Sequence[float]
    direction: Sequence[float]

    @classmethod
    def of(cls, image: sitk.Image) -> "Grid":
        """The grid of an image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    def sample(self, image: sitk.Image, outside: float) -> Floats:
        """The values of an image on this grid, (z, y, x), interpolated linearly."""
        where = self.origin, self.spacing, self.direction, outside
        return sitk.GetArrayFromImage(sitk.Resample(image, self.size, sitk.Transform(), sitk.sitkLinear, *where))

    def image(self, values: NDArray[Any]) -> sitk.Image:
        """An image of (z, y, x) values on this grid."""
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def network_grid(image: sitk.Image, spacing: Sequence[float], size: Sequence[int], covering: bool) -> Grid:
    """The network's grid, centred on an image, with axes to the left, the back and the head.

    Args:
        image: of any orientation.
        spacing: of the grid, mm, x y z.
        size: of the grid, voxels, x y z.
        covering: whether it is enlarged to cover the whole image.
    """
    blank = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    blank.CopyInformation(image)
    own = Grid.of(sitk.DICOMOrient(blank, "LPS"))
    ratio, sizes = np.array(spacing) / own.spacing, list(size)
    if covering:
        shares = np.minimum(1, np.array(size) * ratio / own.size)
        enlarged = [math.ceil(length / share - TOLERANCE) for length, share in zip(size, shares, strict=True)]
        sizes = np.where(shares >= 1 - TOLERANCE, size, enlarged).tolist()
    first = (np.array(own.size) - 1) / 2 - (np.array(sizes) - 1) / 2 * ratio
    # where the spacings are equal, so are the voxels
    first = np.where(np.isclose(ratio, 1, rtol=1e-6, atol=0), np.floor(first + TOLERANCE), first)
    origin = np.array(own.origin) + np.array(own.direction).reshape(3, 3) @ (first * own.spacing)
    return Grid(sizes, list(spacing), origin.tolist(), own.direction)


def suffix_of(path: Path) -> str:
    """The suffix of a volume's file in lower case; empty if it is none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The name of a volume without its suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


def is_series(path: Path) -> bool:
    """Whether a path is a folder with DICOM slices."""
    return path.is_dir() and bool(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path)))


def find(source: Path, several: bool) -> dict[str, list[Path]]:
    """The files of volumes by name: one file, or one for each channel.

    Args:
        source: a volume, or a folder of volumes, of which masks are left out: NAME_segmentation, NAME.seg, and such as
            NAME_seg beside NAME.
        several: whether a volume may have a file for each channel, NAME_0000, NAME_0001 and so on.
    """
    if not source.exists():
        raise InputError(f"{source}: no such file or folder. Check the path")
    is_single = not source.is_dir() or is_series(source)
    if is_single and not (source.is_dir() or suffix_of(source)):
        raise InputError(f"{source}: not a supported format. Convert it to one of {' '.join(SUFFIXES)}")
    # the name of the folder `.` is that of the folder itself; a link keeps its own
    single = source.resolve() if source.name in ("", "..") else source
    folder = single.parent if is_single else source
    beside = several and is_single and stem_of(single).endswith("_0000")
    listed = sorted(folder.iterdir()) if beside or not is_single else [single]
    found: dict[str, list[Path]] = {}
    names = {stem_of(path) for path in listed}
    for path in listed:
        name = stem_of(path)
        if path.name.startswith(".") or not (suffix_of(path) or is_series(path)) or _is_mask(name, names):
            continue
        match = CHANNEL.fullmatch(name)
        if match and (several or match[2] == "0000"):
            name = match[1]
            if int(match[2]) != len(found.get(name, [])):
                raise InputError(f"{path}: a channel before it is missing, or there twice. Add it, or keep one")
        elif name in found:
            raise InputError(f"{path}: the same case as {found[name][0].name}. Keep one of the two")
        found.setdefault(name, []).append(path)
    if beside:
        found = {name: files for name, files in found.items() if single in files}
    if not found:
        raise InputError(f"{source}: no volumes. Convert them to one of {' '.join(SUFFIXES)}")
    return found


def _is_mask(name: str, names: Collection[str]) -> bool:
    """Whether a name is that of a mask among others."""
    ending = next((ending for ending in MASKS_BESIDE if name.lower().endswith(ending)), "")
    base = name[: len(name) - len(ending)]
    return name.lower().endswith(MASKS) or (base != name and bool({base, base + "_0000"} & set(names)))


def read(files: Sequence[Path], channels: int) -> list[sitk.Image]:
    """The channels of a volume, float32, on one grid."""
    try:
        images = [_read_series(path) if path.is_dir() else _read_file(path) for path in files]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{files[0]}: can't be read ({reason}). Copy it again") from None
    if len(images) == 1 and images[0].GetDimension() == 4:
        images = [images[0][:, :, :, number] for number in range(images[0].GetSize()[3])]
    if len(images) != channels:
        raise InputError(f"{files[0]}: its number of channels is {len(images)}, the network's {channels}. Name another")
    for image in images:
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise InputError(f"{files[0]}: not a volume with one value for each voxel. Convert it")
        for ours, first in zip(Grid.of(image), Grid.of(images[0]), strict=True):
            if not np.allclose(ours, first, rtol=0, atol=TOLERANCE):
                raise InputError(f"{files[0]}: its channels lie on different grids. Resample them to one")
    images = [sitk.Cast(image, sitk.sitkFloat32) for image in images]
    if not all(np.isfinite(sitk.GetArrayViewFromImage(image)).all() for image in images):
        raise InputError(f"{files[0]}: has voxels that are NaN or infinite. Export it again without them")
    return images


def _read_file(path: Path) -> sitk.Image:
    image = sitk.ReadImage(str(path))
    if suffix_of(path) in (".nii", ".nii.gz"):
        _check_nifti(path, image)
    return image


def _check_nifti(path: Path, image: sitk.Image) -> None:
    """Of a file that ends early, ITK makes up the rest, and what is not finite it reads as 0."""
    opened: Any = gzip.open if suffix_of(path) == ".nii.gz" else open
    floats, length, finite = FLOATS.get(image.GetMetaData("datatype")), 0, True
    try:
        with opened(path, "rb") as file:
            order = "<" if file.read(int(float(image.GetMetaData("vox_offset"))))[:4] == LITTLE else ">"
            for chunk in iter(lambda: file.read(CHUNK), b""):
                length += len(chunk)
                if floats:
                    whole = len(chunk) - len(chunk) % np.dtype(floats).itemsize
                    finite = finite and bool(np.isfinite(np.frombuffer(chunk[:whole], order + floats)).all())
    except (OSError, EOFError, zlib.error):
        length = 0
    voxels = math.prod(image.GetSize()) * image.GetNumberOfComponentsPerPixel()
    if length < voxels * int(image.GetMetaData("bitpix")) // 8:
        raise InputError(f"{path}: truncated or damaged. Copy it again")
    if not finite:
        raise InputError(f"{path}: has voxels that are NaN or infinite. Export it again without them")


def _read_series(folder: Path) -> sitk.Image:
    others = [path.name for path in sorted(folder.iterdir()) if suffix_of(path) and not path.name.startswith(".")]
    if others:
        cause = f"DICOM slices and {others[0]} in one folder"
        raise InputError(f"{folder}: {cause}. Give the series a folder of its own, or name the file")
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError(f"{folder}: has {len(series)} DICOM series. Give each one a folder of its own")
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    image: sitk.Image = reader.Execute()
    if len(names) > 1:
        texts = [reader.GetMetaData(number, POSITION).split("\\") for number in range(len(names))]
        positions = np.array(texts, float)
        gaps = np.diff(positions, axis=0)
        if np.abs(gaps - gaps.mean(0)).max() > SLICE_TOLERANCE * image.GetSpacing()[2] + ROUNDING:
            raise InputError(f"{folder}: its slices are not evenly spaced. Export the whole series again")
        normal, extent = np.array(image.GetDirection()).reshape(3, 3)[:, 2], positions[-1] - positions[0]
        distance = float(normal @ extent)
        if np.linalg.norm(extent - distance * normal) > SHEAR_TOLERANCE * abs(distance):
            cause = "each slice is shifted against the one before, as with a tilted gantry"
            raise InputError(f"{folder}: {cause}. Resample it onto perpendicular axes")
        # to the last digit as in training, because whether a voxel is the darkest one depends on it
        image.SetSpacing((*image.GetSpacing()[:2], distance / (len(names) - 1)))
    elif image.GetSize()[2] > 1:
        # each of them has a place of its own, which is not read here
        raise InputError(f"{folder}: a file of {image.GetSize()[2]} slices. Convert it to one of {' '.join(SUFFIXES)}")
    else:
        image.SetSpacing((*image.GetSpacing()[:2], _thickness_of(reader) or image.GetSpacing()[2]))
    return image


def _thickness_of(reader: sitk.ImageSeriesReader) -> float | None:
    """The thickness of a single slice, mm, if it states that and no distance to others."""
    tags = (reader.GetMetaData(0, tag) if reader.HasMetaDataKey(0, tag) else "" for tag in (GAP, THICKNESS))
    gap, thickness = (text.strip(" \0") for text in tags)
    with contextlib.suppress(ValueError):
        return float(thickness) if not gap and MIN_THICKNESS <= float(thickness) <= MAX_THICKNESS else None
    return None


def plan(source: Path, output: Path, several: bool) -> list[tuple[list[Path], Path]]:
    """The files of each volume, and the path of its mask.

    Args:
        source: see `find`.
        output: the mask's file, or a folder, in which masks have the names and formats of their volumes.
        several: see `find`.
    """
    found = find(source, several)
    if suffix_of(output) and not output.is_dir():
        if len(found) > 1:
            raise InputError(f"{output}: one file for {len(found)} volumes. Name a folder")
        pairs = [(files, output) for files in found.values()]
    else:
        pairs = [(files, output / f"{name}{_mask_suffix(files[0])}") for name, files in found.items()]
    inputs = {os.path.realpath(path) for files, _ in pairs for path in files}
    for _, mask in pairs:
        if suffix_of(mask) in SINGLE:
            raise InputError(f"{mask}: two files. Write {SINGLE[suffix_of(mask)]} instead")
        if os.path.realpath(mask) in inputs:
            raise InputError(f"{mask}: would replace the volume itself. Choose another --output")
    return pairs


def _mask_suffix(path: Path) -> str:
    return ".nii.gz" if path.is_dir() else SINGLE.get(suffix_of(path), suffix_of(path))


def write(mask: sitk.Image, path: Path) -> None:
    """Writes a mask, compressed; whole or not at all."""
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(mask, str(unfinished), useCompression=True)
        # the writer of NIfTI says nothing of a full disk
        _read_file(unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError, InputError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1].strip()
        reason = "it is incomplete: is the disk full?" if isinstance(error, InputError) else reason
        raise InputError(f"{path}: can't be written ({reason}). Choose another --output") from None
    finally:
        unfinished.unlink(missing_ok=True)
