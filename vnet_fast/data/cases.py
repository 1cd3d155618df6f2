"""Cases: found and paired in a folder, dealt to folds, their classes counted."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats

MASK_SUFFIX = "_segmentation"
# what other programs put behind a case's name in a folder of masks, or of images
MASK_ENDINGS = (MASK_SUFFIX, "_seg", "_mask", "_label", "_labels", "_gt")
IMAGE_ENDINGS = ("_0000",)
LAYOUTS = f"Needed are X.mhd with X{MASK_SUFFIX}.mhd, or imagesTr and labelsTr, or two folders with --data and --labels"


@dataclass(frozen=True)
class Case:
    """A volume's file and its mask's."""

    name: str
    image: Path
    mask: Path


def find_cases(data, labels=None):
    """The cases of a folder, as `pair_cases` finds them.

    Returns:
        list of Case, at least one.

    Raises:
        InputError, InputErrors: if there is none, or an image or a mask is without the other.
    """
    cases, unpaired = pair_cases(data, labels)
    if unpaired:
        raise InputErrors(unpaired)
    return cases


def pair_cases(data, labels=None):
    """The cases of a folder, in natural order of name, and what is without its pair.

    Args:
        data: a folder in PROMISE12's layout (`X.mhd`, `X_segmentation.mhd`), the Decathlon's
            (`imagesTr`, `labelsTr`, with or without `dataset.json`), or of images only.
        labels: None, or the folder of the masks, which have the images' names.

    Returns:
        list of Case, list of an InputError for each image or mask without the other; one of the two
        is not empty.

    Raises:
        InputError, InputErrors: if the folders can't be listed, have no volumes, or names twice.
    """
    data = Path(data)
    if os.path.isdir(data / "imagesTr"):
        data, labels = data / "imagesTr", labels or data / "labelsTr"
    if labels is not None:
        images = _without_endings(formats.volumes_in(data), IMAGE_ENDINGS)
        masks = _without_endings(formats.volumes_in(labels), MASK_ENDINGS)
    else:
        found = formats.volumes_in(data)
        masks = {_base(name, (MASK_SUFFIX,)): path for name, path in found.items() if _is_mask(name)}
        images = {name: path for name, path in found.items() if not _is_mask(name)}
        if images and not masks:
            raise InputError(data, f"{len(images)} volumes but no masks", LAYOUTS)
    if not images:
        raise InputError(data, "no volumes", LAYOUTS)
    unpaired = [InputError(images[name], "no mask for this image", "Add it, or take the image away")
                for name in images.keys() - masks.keys()]  # fmt: skip
    unpaired += [InputError(masks[name], "no image for this mask", "Add it, or take the mask away")
                 for name in masks.keys() - images.keys()]  # fmt: skip
    names = sorted(images.keys() & masks.keys(), key=natural)
    cases = [Case(name, images[name], masks[name]) for name in names]
    return cases, sorted(unpaired, key=lambda error: natural(error.subject))


def find_images(data):
    """The volumes to predict in a folder: those of `find_cases` without the masks, or all.

    Returns:
        dict from name to path, in natural order of name; a folder of DICOM slices is one volume.
    """
    data = Path(data)
    for folder in ("imagesTs", "imagesTr"):
        if os.path.isdir(data / folder):
            data = data / folder
            break
    found = _without_endings(formats.volumes_in(data), IMAGE_ENDINGS)
    found = {name: found[name] for name in sorted(found, key=natural) if not _is_mask(name)}
    if not found:
        raise InputError(data, "no volumes", formats.CONVERT)
    return found


def pair_masks(predictions, labels):
    """Predicted masks and the reference masks of the same cases.

    Returns:
        list of (name, prediction, reference) in natural order of name, and how many references have
        no prediction.

    Raises:
        InputErrors: if a prediction has no reference.
    """
    found = _without_endings(formats.volumes_in(predictions), MASK_ENDINGS)
    found = {name: path for name, path in found.items() if "_probability" not in name}
    if not found:
        raise InputError(predictions, "no predicted masks", "Name the folder that predict wrote to")
    labels = Path(labels)
    if os.path.isdir(labels / "labelsTr"):
        labels = labels / "labelsTr"
    everything = formats.volumes_in(labels)
    marked = {name: path for name, path in everything.items() if _is_mask(name)}
    references = _without_endings(marked or everything, MASK_ENDINGS)
    missing = [
        InputError(found[name], f"no reference mask for it in {labels}", "Add it, or take the prediction away")
        for name in sorted(found.keys() - references.keys(), key=natural)
    ]
    if missing:
        raise InputErrors(missing)
    pairs = [(name, found[name], references[name]) for name in sorted(found, key=natural)]
    return pairs, len(references) - len(pairs)


def natural(name):
    """Sorting key by which Case2 stands before Case10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(name)) if part]


def _is_mask(name):
    return name.lower().endswith(MASK_SUFFIX)


def _base(name, endings):
    ending = next((e for e in endings if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _without_endings(found, endings):
    """Names without the endings, where every one has an ending or the short names stay apart."""
    short, errors = {}, []
    for name, path in found.items():
        base = _base(name, endings) or name
        if base in short:
            errors.append(InputError(path, f"the same case as {short[base].name}", "Keep one of the two"))
        short.setdefault(base, path)
    if errors:
        raise InputErrors(errors)
    return short
