"""From a volume's file to probabilities and labels on the volume's own grid."""

import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import nn
from tqdm import tqdm

from vnet_fast.data.intensity import normalise
from vnet_fast.errors import InputError
from vnet_fast.io import formats, volumes
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, probabilities_on_image, working_grid
from vnet_fast.prediction.components import largest_components
from vnet_fast.prediction.inference import OVERLAP, predict_probabilities

# of a grid that covers a volume: 4 GB as float32, and as much for the probabilities of each class
MAX_VOXELS = 1 << 30


class Segmentation(NamedTuple):
    """A volume with its predicted probabilities.

    Args:
        image: SimpleITK image of the volume.
        probabilities: (K, z, y, x) float32 on its grid.
        is_larger: whether the volume extends beyond the network's size.
    """

    image: sitk.Image
    probabilities: np.ndarray
    is_larger: bool


def segment(
    model: nn.Module,
    path: Path,
    spacing: tuple[float, float, float],
    size: tuple[int, int, int],
    autocast: torch.dtype | None = None,
    overlap: float | None = None,
    **options: Any,
) -> Segmentation:
    """Reads a volume and predicts its probabilities.

    A larger volume is normalised by the intensities of its centre, as volumes are in training.

    Args:
        model: the network, or a ModuleList of networks whose probabilities are averaged.
        path: of the volume.
        spacing: of the network's grid, mm, x y z.
        size: of the network's grid, voxels, x y z.
        autocast: the dtype of mixed precision, or None.
        overlap: None predicts the centre of a larger volume, with background beyond it. A number, 0 <= overlap < 1,
            covers the whole volume by windows that overlap by this share.
        **options: `flips` and `track` of `predict_probabilities`.

    Raises:
        InputError: if the volume can't be read, is constant at its centre, or has more than 2^30 voxels on the
            network's grid.
    """
    image = volumes.read_image(path)
    centre = working_grid(image, spacing, size)
    is_larger = covering_size(image, centre) != centre.size
    grid = _covering_grid(image, path, centre) if is_larger and overlap is not None else centre
    reference = image_on_grid(image, centre)
    try:
        values = normalise(reference if grid == centre else image_on_grid(image, grid), reference)
    except ValueError as error:
        raise InputError(path, f"{error} on the network's grid", "Check that it is a scan") from None
    z, y, x = reference.shape
    share = OVERLAP if overlap is None else overlap
    probabilities = predict_probabilities(
        model, values, autocast, (z, y, x), share, notify=lambda message: tqdm.write(f"{path}: {message}"), **options
    )
    return Segmentation(image, probabilities_on_image(probabilities, grid, image), is_larger)


def _covering_grid(image: sitk.Image, path: Path, centre: Grid) -> Grid:
    size = covering_size(image, centre)
    if math.prod(size) > MAX_VOXELS:
        cause = f"takes {' x '.join(map(str, size))} voxels on the network's grid"
        raise InputError(path, cause, "Check its spacing, or leave --overlap out")
    return working_grid(image, centre.spacing, size)


def to_labels(probabilities: np.ndarray, all_components: bool = False) -> np.ndarray:
    """The most probable class of each voxel.

    Args:
        probabilities: (K, z, y, x).
        all_components: whether all components of a class are kept, and not only the largest one.

    Returns:
        (z, y, x) uint8.
    """
    labels = probabilities.argmax(0).astype(np.uint8)
    return labels if all_components else largest_components(labels)


def write_probabilities(probabilities: np.ndarray, image: sitk.Image, path: Path) -> None:
    """Writes a file NAME_probability beside the mask for each foreground class, numbered if there are several."""
    stem, suffix = formats.stem_of(path), formats.suffix_of(path)
    for k, probability in enumerate(probabilities[1:], start=1):
        number = f"_{k}" if len(probabilities) > 2 else ""
        volumes.write(probability, image, path.with_name(f"{stem}_probability{number}{suffix}"))


def segment_all(
    pairs: Iterable[tuple[Path, Path]],
    segment_one: Callable[[Path], Segmentation],
    probabilities: bool = False,
    all_components: bool = False,
) -> tuple[list[InputError], int]:
    """Writes the masks of volumes.

    Args:
        pairs: (volume, mask) paths.
        segment_one: segments the volume at a path.
        probabilities: whether the probabilities are written too.
        all_components: see `to_labels`.

    Returns:
        (the errors of the volumes that have no mask, how many volumes are larger than the network's size).
    """
    errors, count = [], 0
    for path, target in pairs:
        try:
            result = segment_one(path)
            if probabilities:
                write_probabilities(result.probabilities, result.image, target)
            volumes.write(to_labels(result.probabilities, all_components), result.image, target)
        except InputError as error:
            errors.append(error)
            continue
        count += result.is_larger
        if not sys.stderr.isatty():
            print(target, flush=True)
    return errors, count


def progress_bar(description: str, unit: str = "volume") -> "partial[tqdm]":
    """A progress bar for an iterable; it is hidden where there is no terminal."""
    return partial(tqdm, desc=description, unit=unit, disable=not sys.stderr.isatty(), leave=False)
