"""Finds the cases of a folder, and pairs images with masks."""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnet_fast.data.channel_files import CHANNEL, FIRST_CHANNEL, join_channels
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats

MASK_SUFFIX = "_segmentation"
# endings that other programs add to a case's name in a folder of masks
MASK_ENDINGS = (MASK_SUFFIX, "_seg", "_mask", "_label", "_labels", "_gt")
# what 3D Slicer puts before the suffix of a segmentation, such as NAME.seg.nrrd, whatever else NAME ends in
SLICER_ENDING = ".seg"
# the names of the maps that prediction writes beside a mask
MAP = re.compile(r"(?P<mask>.+)_(?:probability(?:_\d+)?|entropy)")
LAYOUTS = f"Provide X.mhd with X{MASK_SUFFIX}.mhd, or imagesTr with labelsTr, or two folders with --data and --labels"


@dataclass(frozen=True)
class Case:
    """The files of a volume and of its mask.

    Args:
        name: of the case.
        image: the volume's file, or that of its first channel.
        mask: the mask's file.
        others: the files of the other channels, if each has one of its own.
    """

    name: str
    image: Path
    mask: Path
    others: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """The volume's files, one for each channel; a single file may have several channels."""
        return self.image, *self.others


def find_cases(data: str | Path, labels: str | Path | None = None) -> list[Case]:
    """Finds the cases of a folder; all images and masks must be paired.

    Args:
        data: as for `pair_cases`.
        labels: as for `pair_cases`.

    Returns:
        at least one Case, in natural order of name.

    Raises:
        InputError, InputErrors: if there are no cases, or an image or a mask is without the other.
    """
    cases, unpaired = pair_cases(data, labels)
    if unpaired:
        raise InputErrors(unpaired)
    return cases


def pair_cases(data: str | Path, labels: str | Path | None = None) -> tuple[list[Case], list[InputError]]:
    """Finds the cases of a folder, and the images and masks without their counterparts.

    Args:
        data: a folder in PROMISE12's layout (`X.mhd`, `X_segmentation.mhd`), in the Decathlon's (`imagesTr`,
            `labelsTr`, with or without `dataset.json`), or of images only.
        labels: None, or the folder of the masks, which have the images' names.

    Returns:
        Cases in natural order of name, and an InputError for each unpaired image or mask; one of the two
        lists is not empty.

    Raises:
        InputError, InputErrors: if a folder can't be listed or has no volumes, or if a name occurs twice.
    """
    data = Path(data)
    if os.path.isdir(data / "imagesTr"):
        data, labels = data / "imagesTr", labels or data / "labelsTr"
    if labels is not None:
        volumes = _without_maps(formats.volumes_in(data))
        masks = _strip_endings(_without_maps(formats.volumes_in(labels)), MASK_ENDINGS, of=volumes)
    else:
        volumes = _without_maps(formats.volumes_in(data))
        masks = _strip_endings({name: path for name, path in volumes.items() if _is_mask(name)}, (MASK_SUFFIX,))
        volumes = {name: path for name, path in volumes.items() if not _is_mask(name)}
        if volumes and not masks:
            raise InputError(data, f"{len(volumes)} volumes but no masks", LAYOUTS)
    if not volumes:
        raise InputError(data, "no volumes", LAYOUTS)
    # what has a mask of its own is a case, even if it is named like a channel
    images, unpaired = join_channels(volumes, lambda case, name: case in masks and name not in masks)
    if labels is not None and images.keys().isdisjoint(masks):
        raise _no_common_name(data, labels, volumes, masks)
    unpaired += [InputError(images[name][0], "no mask for this image", "Add it, or remove the image")
                 for name in images.keys() - masks.keys()]  # fmt: skip
    unpaired += [InputError(masks[name], "no image for this mask", "Add it, or remove the mask")
                 for name in masks.keys() - images.keys()]  # fmt: skip
    names = sorted(images.keys() & masks.keys(), key=natural)
    unpaired += [InputError(masks[name], "the image and its mask are one file", "Name the folder of the masks")
                 for name in names if os.path.realpath(masks[name]) in map(os.path.realpath, images[name])]  # fmt: skip
    cases = [Case(name, images[name][0], masks[name], images[name][1:]) for name in names]
    return cases, sorted(unpaired, key=lambda error: natural(error.subject))


def _no_common_name(
    data: Path, labels: str | Path, volumes: Mapping[str, Path], masks: Mapping[str, Path]
) -> InputError:
    """The error for a folder of masks of which none is of an image."""
    if not masks:
        return InputError(labels, "no masks", LAYOUTS)
    image, mask = (min(paths.values(), key=natural).name for paths in (volumes, masks))
    cause = f"none of its {len(masks)} masks has the name of an image in {data}, for example {mask} and {image}"
    return InputError(labels, cause, "Give each mask the name of its image")


def names_of(path: str | Path) -> set[str]:
    """The names that the case of an unpaired image, channel or mask may have."""
    name = formats.stem_of(path)
    channel = CHANNEL.fullmatch(name)
    return {name, _strip_ending(name, MASK_ENDINGS), *((channel["case"],) if channel else ())}


def find_images(data: str | Path, several: bool = False) -> dict[str, tuple[Path, ...]]:
    """Finds the volumes to predict in a folder: all that are not masks, as `X_seg` is only where `X` is there too.

    Args:
        data: a folder in one of the layouts of `pair_cases`; `imagesTs` comes before `imagesTr`.
        several: whether volumes may have a file for each channel; otherwise only the ending of the first one is left
            out of a name.

    Returns:
        dict from name to the volume's files, in natural order of name; a folder of DICOM slices is one file.

    Raises:
        InputError, InputErrors: if the folder can't be listed or has no volumes, or if a name occurs twice.
    """
    data = Path(data)
    for folder in ("imagesTs", "imagesTr"):
        if os.path.isdir(data / folder):
            data = data / folder
            break
    found = _without_maps(formats.volumes_in(data))
    firsts = {name.removesuffix(FIRST_CHANNEL) for name in found if name.endswith(FIRST_CHANNEL)}
    volumes, errors = join_channels(
        {name: path for name, path in found.items() if not (_is_mask(name) or _is_beside_its_volume(name, found))},
        lambda case, name: name.endswith(FIRST_CHANNEL) or (several and case in firsts),
    )
    if errors:
        raise InputErrors(errors)
    if not volumes:
        nested = formats.folder_of_series(data)
        if nested not in (None, data):
            raise InputError(data, "its DICOM series lie deeper", f"Name the folder that they lie in, such as {nested}")
        raise InputError(data, "no volumes", formats.CONVERT)
    return {name: volumes[name] for name in sorted(volumes, key=natural)}


def pair_masks(predictions: str | Path, labels: str | Path) -> tuple[list[tuple[str, Path, Path]], list[Path]]:
    """Pairs predicted masks with the reference masks of the same cases.

    Args:
        predictions: folder of the predicted masks, or the file of one.
        labels: folder of the reference masks, or of a data set that has `labelsTr`; or the file of the reference
            mask of a single prediction, which may have any name.

    Returns:
        list of (name, prediction, reference) in natural order of name, and the references without a prediction.

    Raises:
        InputError: if there are no predictions, or `labels` is one file for a folder of predictions.
        InputErrors: for all predictions without a reference, or that are the reference.
    """
    if _is_file(labels):
        if not _is_file(predictions):
            raise InputError(
                labels, f"one reference mask for the folder {predictions}", "Name two files or two folders"
            )
        return _checked([(_strip_ending(formats.stem_of(labels), MASK_ENDINGS), Path(predictions), Path(labels))]), []
    predicted = _find_predictions(predictions)
    labels = Path(labels)
    if os.path.isdir(labels / "labelsTr"):
        labels = labels / "labelsTr"
    volumes = _without_maps(formats.volumes_in(labels))
    # without names that end in MASK_SUFFIX, it is a folder of masks only
    masks = {name: path for name, path in volumes.items() if _is_mask(name)} or volumes
    references = _strip_endings(masks, MASK_ENDINGS)
    missing = [
        InputError(predicted[name], f"no reference mask for it in {labels}", "Add it, or remove the prediction")
        for name in sorted(predicted.keys() - references.keys(), key=natural)
    ]
    if missing:
        raise InputErrors(missing)
    pairs = [(name, predicted[name], references[name]) for name in sorted(predicted, key=natural)]
    return _checked(pairs), [references[name] for name in sorted(references.keys() - predicted.keys(), key=natural)]


def _checked(pairs: list[tuple[str, Path, Path]]) -> list[tuple[str, Path, Path]]:
    """The pairs, of which none is a mask and itself."""
    errors = [
        InputError(prediction, "the prediction and its reference are one file", "Name the folder that predict wrote to")
        for _, prediction, reference in pairs
        if os.path.realpath(prediction) == os.path.realpath(reference)
    ]
    if errors:
        raise InputErrors(errors)
    return pairs


def _find_predictions(predictions: str | Path) -> dict[str, Path]:
    """The predicted masks of a folder, or of one file, by the names of their cases."""
    if _is_file(predictions):
        formats.check_regular(predictions)
        found = {formats.stem_of(predictions): Path(predictions)}
    else:
        found = formats.volumes_in(predictions)
    predicted = _strip_endings(found, MASK_ENDINGS)
    predicted = {name: path for name, path in predicted.items() if not MAP.fullmatch(name)}
    if not predicted:
        raise InputError(predictions, "no predicted masks", "Name the folder that predict wrote to")
    return predicted


def _is_file(path: str | Path) -> bool:
    """Whether a path names one volume: it has the suffix of a format or is meant as DICOM, and is no folder."""
    return not os.path.isdir(path) and (formats.suffix_of(path) is not None or formats.is_meant_as_dicom(Path(path)))


def natural(name: object) -> tuple[list[tuple[int, int, str]], str]:
    """Returns a sorting key for natural order, in which Case2 comes before Case10, and Case01 before Case1."""
    text = str(name)
    parts = (part for part in re.split(r"(\d+)", text) if part)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], text


def _is_mask(name: str) -> bool:
    return name.lower().endswith((MASK_SUFFIX, SLICER_ENDING))


def _is_beside_its_volume(name: str, volumes: Collection[str]) -> bool:
    """Whether a name ends like that of a mask of other programs, and is beside the volume of the name without that."""
    base = _strip_ending(name, MASK_ENDINGS)
    return base != name and (base in volumes or base + FIRST_CHANNEL in volumes)


def _without_maps(volumes: Mapping[str, Path]) -> dict[str, Path]:
    """Volumes and masks without the maps beside them, by name."""
    matches = {name: MAP.fullmatch(name) for name in volumes}
    return {name: path for name, path in volumes.items() if not ((map_ := matches[name]) and map_["mask"] in volumes)}


def _strip_ending(name: str, endings: Sequence[str]) -> str:
    name = name[: -len(SLICER_ENDING)] if name.lower().endswith(SLICER_ENDING) else name
    ending = next((ending for ending in endings if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _strip_endings(volumes: Mapping[str, Path], endings: Sequence[str], of: Collection[str] = ()) -> dict[str, Path]:
    """Strips endings from the names of volumes, but from those that are, with or without a channel, in `of`.

    Raises:
        InputErrors: for all volumes whose stripped names occur before.
    """
    bases = Counter(_strip_ending(name, endings) for name in volumes)

    def is_whole(name: str) -> bool:
        """Whether a mask is of the volume of its own name, and not the only one of that without the ending."""
        base = _strip_ending(name, endings)
        is_of_base = (base in of or base + FIRST_CHANNEL in of) and bases[base] == 1
        return (name in of or name + FIRST_CHANNEL in of) and (base == name or not is_of_base)

    stripped: dict[str, Path] = {}
    errors = []
    for name, path in volumes.items():
        base = name if is_whole(name) else _strip_ending(name, endings) or name
        if base in stripped:
            errors.append(InputError(path, f"the same case as {stripped[base].name}", "Keep one of the two"))
        stripped.setdefault(base, path)
    if errors:
        raise InputErrors(errors)
    return stripped
