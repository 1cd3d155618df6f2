"""Which volumes are predicted, and where their masks are written."""

import os
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

from vnet_fast.data.cases import find_images
from vnet_fast.data.channel_files import CHANNEL, FIRST_CHANNEL, channels_of
from vnet_fast.errors import InputError
from vnet_fast.io import formats
from vnet_fast.io.probabilities import DICOM_OUTPUT, beside

# of a DICOM Segmentation
SEGMENTATION_OUTPUT = ".dcm"
# of the masks of the Decathlon and of nnU-Net
MASK_FOLDERS = ("labelsTr", "labelsTs")

# of files that are no folders, and in no format that is written
OTHER_SUFFIXES = (
    ".bmp", ".csv", ".gif", ".gipl", ".gz", ".bz2", ".h5", ".hdr", ".img", ".jpeg", ".jpg", ".json", ".mgh", ".mgz",
    ".mnc", ".npy", ".npz", ".par", ".png", ".pt", ".raw", ".rec", ".stl", ".tif", ".tiff", ".txt", ".vtk", ".xz",
    ".zip", ".zraw",
)  # fmt: skip

Files = tuple[Path, ...]


def plan(
    source: str | Path,
    target: str | Path,
    only: Collection[str] | None = None,
    several: bool = False,
    endings: Collection[str] = (),
    as_dicom: bool = False,
) -> list[tuple[Files, Path]]:
    """The files to predict and the files of their masks.

    Args:
        source: a volume, a folder of DICOM slices, or a folder of volumes.
        target: the mask's file, or a folder.
        only: None, or the names of the cases to take from a folder.
        several: whether volumes may have a file for each channel, of which `source` is the first one's.
        endings: of the names of the maps that are written beside a mask.
        as_dicom: whether masks are DICOM Segmentations, which only DICOM series have.

    Returns:
        list of (files of a volume, path of its mask).

    Raises:
        InputError: if there is nothing to predict, a mask or a map would replace a volume or lie among slices, or a
            volume can't have such a mask.
    """
    source, target = Path(source), Path(target)
    is_single = not os.path.isdir(source) or formats.is_dicom_folder(source)
    volumes = _find_volumes(source, is_single, several, target)
    if only is not None:
        volumes = {name: path for name, path in volumes.items() if name in only}
        if not volumes:
            raise InputError(source, "none of the run's validation cases", "Name the folder it was trained on")
    pairs = _pairs(volumes, target, is_single, as_dicom)
    if as_dicom:
        check_series(pairs)
    written = [path for _, mask in pairs for path in (mask, *(beside(mask, ending) for ending in endings))]
    check_nothing_is_replaced((path for files in volumes.values() for path in files), written)
    check_not_among_slices(written)
    check_no_references(written)
    return pairs


def _pairs(volumes: dict[str, Files], target: Path, is_single: bool, as_dicom: bool) -> list[tuple[Files, Path]]:
    """The files of each volume and the path of its mask."""
    is_file = bool(formats.suffix_of(target)) or formats.is_dicom_output(target)
    if is_single and is_file:
        return [(files, target) for files in volumes.values()]
    if is_file and not target.is_dir():
        remedy = "Name a folder" + (" and give --dicom-seg" if formats.is_dicom_output(target) else "")
        raise InputError(target, f"one file for {len(volumes)} volumes", remedy)
    if is_single and _looks_like_file(target) and not target.is_dir():
        raise InputError(target, "not a format that is written", formats.CONVERT.replace("Convert", "Change"))
    suffixes = [SEGMENTATION_OUTPUT if as_dicom else output_suffix(files[0]) for files in volumes.values()]
    return [(volumes[name], target / f"{name}{suffix}") for name, suffix in zip(volumes, suffixes, strict=True)]


def _looks_like_file(target: Path) -> bool:
    """Whether a name without a suffix that is written is still no folder's, as `masks_v1.0` may be: it has the suffix
    of another file, or that of a volume with another one behind it or a slip of the pen."""
    suffixes = [suffix.lower() for suffix in target.suffixes]
    if not suffixes:
        return False
    is_known = suffixes[-1] in OTHER_SUFFIXES or any(suffix in formats.SUFFIXES for suffix in suffixes)
    return is_known or bool(get_close_matches(suffixes[-1], formats.SUFFIXES))


def volume_files(source: Path, several: bool = False) -> Files:
    """The files of a single volume: one for each channel beside the first one's if there may be several."""
    if not os.path.isdir(source):
        formats.check_regular(source)
    return channels_of(_with_name(source)) if several else (source,)


def _with_name(source: Path) -> Path:
    """A path whose last part is a name. A link keeps its own: archives name what it leads to by its content."""
    return source.resolve() if source.name in ("", "..") else source


def check_series(pairs: Iterable[tuple[Files, Path]]) -> None:
    """Raises an InputError unless all volumes are DICOM series."""
    for files, _ in pairs:
        if not os.path.isdir(files[0]):
            remedy = "Choose another --output, or leave --dicom-seg out"
            raise InputError(files[0], "not a DICOM series, and only a series has a DICOM Segmentation", remedy)


def check_not_among_slices(masks: Iterable[Path]) -> None:
    """Raises an InputError if a mask or a map would lie in the folder of a series, which could not be read then."""
    for folder, mask in {mask.parent: mask for mask in masks}.items():
        if formats.is_dicom_folder(folder):
            raise InputError(mask, "would lie among the slices of a series", "Choose another --output")


def check_no_references(masks: Iterable[Path]) -> None:
    """Raises an InputError if a mask would replace one of a data set, whose masks have the names of its volumes."""
    for mask in masks:
        if mask.absolute().parent.name in MASK_FOLDERS and os.path.lexists(mask):
            raise InputError(mask, "would replace a mask of the data set", "Choose another --output")


def _find_volumes(source: Path, is_single: bool, several: bool, target: Path) -> dict[str, Files]:
    if not is_single:
        return find_images(source, several)
    named, files = _with_name(source), volume_files(source, several)
    name = formats.stem_of(named)
    match = CHANNEL.fullmatch(name)
    # as in a folder, where the ending of a first channel is left out of a volume's name
    if match and (len(files) > 1 or (name.endswith(FIRST_CHANNEL) and _is_free(match["case"], named.parent, target))):
        name = match["case"]
    return {name: files}


def _is_free(name: str, folder: Path, target: Path) -> bool:
    """Whether no volume of a folder has a name, nor would the mask, if it were written there."""
    taken = any(os.path.exists(folder / f"{name}{suffix}") for suffix in ("", *formats.SUFFIXES))
    return not taken and os.path.realpath(folder) != os.path.realpath(target)


def check_nothing_is_replaced(volumes: Iterable[Path], masks: Iterable[Path]) -> None:
    """Raises an InputError if writing masks or maps would replace a file of a volume."""
    # unlike Path.resolve, realpath accepts a loop of links
    inputs = {os.path.realpath(file) for path in volumes for file in _files_of(path)}
    for mask in masks:
        written = [mask]
        if mask.suffix.lower() in (".mhd", ".nhdr"):
            written += [mask.with_suffix(suffix) for suffix in (".zraw", ".raw", ".raw.gz")]
        for file in written:
            if os.path.realpath(file) in inputs:
                raise InputError(file, "would replace the volume itself", "Choose another --output")


def _files_of(path: Path) -> list[Path]:
    try:
        return formats.files_of(path)
    except InputError:
        # a damaged header is reported when the volume is read
        return [path]


def output_suffix(path: Path) -> str:
    """The suffix of the mask of the volume at `path`."""
    return DICOM_OUTPUT if path.is_dir() else formats.suffix_of(path) or DICOM_OUTPUT
