"""From a volume's file to probabilities and labels on the volume's own grid."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import nn

from vnet_fast.data.channels import Channel, describe
from vnet_fast.data.classes import title_of
from vnet_fast.devices import is_out_of_memory
from vnet_fast.errors import InputError
from vnet_fast.io import volumes, writing
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, probability_on_grid, working_grid
from vnet_fast.io.probabilities import ENTROPY, beside, probability_file
from vnet_fast.prediction.components import IS_INSIDE, largest_components
from vnet_fast.prediction.inference import OVERLAP, predict_probabilities
from vnet_fast.prediction.task import Task
from vnet_fast.prediction.uncertainty import entropy_on_grid
from vnet_fast.progress import note, track
from vnet_fast.regions import Region, label_table, written_names
from vnet_fast.text_table import printable

# of a grid that covers a volume: 4 GB as float32, and as much for the probabilities of each class
MAX_VOXELS = 1 << 30
# of the slabs in which labels of a volume are made: larger than most volumes, small beside the memory of a machine
SLAB_VOXELS = 1 << 23
# what `_prepare` returns
Prepared = tuple[NDArray[np.float32], Grid, Grid, tuple[int, int, int], bool]


@dataclass(frozen=True)
class Segmentation:
    """A volume's predicted probabilities. They are kept on the network's grid, which is small beside a large volume's.

    Args:
        grid: of the volume's file.
        network_grid: of the probabilities.
        network_probabilities: (K, z, y, x) float32 on it.
        is_larger: whether the volume extends beyond the network's size.
        class_names: dict from label to name, of the classes that have one.
        regions: what the probabilities are of, if they are of regions that may overlap.
    """

    grid: Grid
    network_grid: Grid
    network_probabilities: NDArray[np.float32]
    is_larger: bool
    class_names: Mapping[int, str] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()

    def probability(self, label: int) -> NDArray[np.float32]:
        """The probability of a class or of a region, from 1 on, (z, y, x) float32 on the volume's own grid."""
        number = label - 1 if self.regions else label
        return probability_on_grid(self._image(number), self.grid, label)

    def labels(self, all_components: bool = False) -> NDArray[np.uint8]:
        """The most probable class of each voxel.

        Args:
            all_components: whether all components of a class are kept, and not only the largest one.

        Returns:
            (z, y, x) uint8 on the volume's own grid.
        """
        if self.regions:
            return self._labels_of_regions(all_components)
        labels = np.zeros(self.grid.shape, np.uint8)
        images = [self._image(label) for label in range(len(self.network_probabilities))]
        for first, end in self._slabs():
            slab = self.grid.slab(first, end)
            highest = probability_on_grid(images[0], slab, 0)
            for label, image in enumerate(images[1:], start=1):
                probability = probability_on_grid(image, slab, label)
                is_higher = probability > highest
                labels[first:end][is_higher] = label
                highest = np.maximum(highest, probability, out=highest)
        return labels if all_components else largest_components(labels)

    def _labels_of_regions(self, all_components: bool) -> NDArray[np.uint8]:
        """The labels of the regions that voxels are in."""
        codes = np.zeros(self.grid.shape, np.uint16)
        for number in range(len(self.regions)):
            image, inside = self._image(number), np.zeros(self.grid.shape, np.uint8)
            for first, end in self._slabs():
                # as of any class but the background, it is 0 outside of the network's grid
                probability = probability_on_grid(image, self.grid.slab(first, end), number + 1)
                inside[first:end] = probability > IS_INSIDE
            kept = inside if all_components else largest_components(inside)
            codes |= (kept > 0).astype(np.uint16) << number
        return label_table(self.regions)[codes]

    def entropy(self) -> NDArray[np.float32]:
        """The entropy of the probabilities of each voxel, see `entropy_on_grid`, on the volume's own grid."""
        images = [self._image(number) for number in range(len(self.network_probabilities))]
        return entropy_on_grid(images, self.grid, self._slabs(), bool(self.regions))

    def _image(self, label: int) -> sitk.Image:
        return self.network_grid.image_from(self.network_probabilities[label])

    def _slabs(self) -> Iterator[tuple[int, int]]:
        """The first slice of each slab and the one behind it."""
        x, y, slices = self.grid.size
        thickness = max(1, SLAB_VOXELS // (x * y))
        return ((first, min(first + thickness, slices)) for first in range(0, slices, thickness))

    def write_mask(self, path: Path, all_components: bool = False, labels: NDArray[np.uint8] | None = None) -> None:
        """Writes labels, by default what `labels` returns; an `InputError` if that fails."""
        numbers = range(1, len(self.network_probabilities))
        names = {label: title_of(label, self.class_names) for label in numbers} if self.class_names else {}
        if self.regions:
            names = written_names(self.regions)
        writing.write(self.labels(all_components) if labels is None else labels, self.grid, path, names)

    def write_probabilities(self, path: Path) -> None:
        """Writes a file NAME_probability beside the mask for each foreground class, numbered if there are several."""
        count = len(self.network_probabilities) - (not self.regions)
        for label in range(1, count + 1):
            writing.write(self.probability(label), self.grid, probability_file(path, label, count))

    def write_entropy(self, path: Path) -> None:
        """Writes a file NAME_entropy beside the mask, see `entropy`."""
        writing.write(self.entropy(), self.grid, beside(path, ENTROPY))


def segment(
    model: nn.Module,
    paths: Path | Sequence[Path],
    task: Task,
    autocast: torch.dtype | None = None,
    overlap: float | None = None,
    **options: Any,
) -> Segmentation:
    """Reads a volume and predicts its probabilities.

    A larger volume is normalised by the intensities of its centre, as volumes are in training; for a network that was
    trained on patches, by all of them.

    Args:
        model: the network, or a ModuleList of networks whose probabilities are averaged.
        paths: of the volume's file, or of a file for each of its channels.
        task: of the network.
        autocast: the dtype of mixed precision, or None.
        overlap: None predicts the centre of a larger volume, with background beyond it. A number, 0 <= overlap < 1,
            covers the whole volume by windows that overlap by this share. A network that was trained on patches
            covers it in any case.
        **options: `flips` and `passes` of `predict_probabilities`.

    Raises:
        InputError: if the volume can't be read, has another number of channels than the network, is constant at its
            centre, has more than 2^30 voxels on the network's grid, or makes the network overflow.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    prepared = _prepare(volumes.read_channels(files), files, task, task.patches or overlap is not None)
    return _predict(model, prepared, files[0], task, autocast, overlap, **options)


def segment_images(
    model: nn.Module,
    images: Sequence[sitk.Image],
    names: Sequence[object],
    task: Task,
    autocast: torch.dtype | None = None,
    overlap: float | None = None,
    **options: Any,
) -> Segmentation:
    """Predicts the probabilities of a volume in memory, as `segment` does of one in files.

    Args:
        model, task, autocast, overlap: see `segment`.
        images: its channels, 3-D SimpleITK images on one grid, float32, finite.
        names: what messages call the volume, or each of its channels.
        **options: see `segment`.

    Raises:
        InputError: as `segment`.
    """
    prepared = _prepare(images, names, task, task.patches or overlap is not None)
    return _predict(model, prepared, names[0], task, autocast, overlap, **options)


def _predict(
    model: nn.Module,
    prepared: Prepared,
    path: object,
    task: Task,
    autocast: torch.dtype | None,
    overlap: float | None,
    **options: Any,
) -> Segmentation:
    values, grid, own_grid, window, is_larger = prepared
    volumes.return_memory_beside(math.prod(own_grid.size))
    share = OVERLAP if overlap is None else overlap
    try:
        probabilities = predict_probabilities(
            model, values, autocast, window, share, notify=lambda message: note(f"{path}: {message}"),
            track=partial(track, description="", unit="windows"), overlapping=bool(task.regions), **options,
        )  # fmt: skip
    except InputError as error:
        raise InputError(path, f"{error.subject} {error.cause}", error.remedy) from None
    return Segmentation(own_grid, grid, probabilities, is_larger, task.class_names, task.regions)


def _prepare(images: Sequence[sitk.Image], paths: Sequence[Any], task: Task, covering: bool) -> Prepared:
    """Puts a volume on the network's grid.

    Returns:
        its normalised intensities, (C, z, y, x) float32; the network's grid that they are on; the volume's own grid;
        the shape of the network's size; and whether the volume is larger.
    """
    path, channels = paths[0], task.channels
    if len(images) != len(channels):
        cause = f"has {describe((Channel(),) * len(images))}, and the network was trained on {describe(channels)}"
        raise InputError(path, cause, _remedy_of_channels(len(paths), len(images) - len(channels)))
    image = images[0]
    centre = working_grid(image, task.spacing, task.size)
    is_larger = covering_size(image, centre) != centre.size
    grid = _covering_grid(image, path, centre) if is_larger and covering else centre
    values = np.empty((len(images), *grid.shape), np.float32)
    for number, (image, channel) in enumerate(zip(images, channels, strict=True)):
        found = image_on_grid(image, grid)
        reference = image_on_grid(image, centre) if grid != centre and not task.patches else found
        if np.isnan(reference).all():
            cause = f"is thinner than the network's voxels of {' x '.join(f'{length:g}' for length in task.spacing)} mm"
            raise InputError(path, cause, "Give a volume of several slices")
        try:
            values[number] = channel.normalised(found, reference)
        except ValueError as error:
            path = paths[min(number, len(paths) - 1)]
            raise InputError(path, f"{error} on the network's grid", "Check that it is a scan") from None
    return values, grid, Grid.of(image), centre.shape, is_larger


def _remedy_of_channels(files: int, too_many: int) -> str:
    """What to do about a volume in so many files with more channels than the network's, or fewer."""
    if too_many > 0:
        return "Split it into files, and name what the network was trained on" if files == 1 else "Leave the others out"
    if files > 1:
        return "Add the files of the others"
    return "Name a 4-D NIfTI file of all, or the file that ends in _0000 with those of the other channels beside it"


def _covering_grid(image: sitk.Image, path: object, centre: Grid) -> Grid:
    size = covering_size(image, centre)
    if math.prod(size) > MAX_VOXELS:
        cause = f"takes {' x '.join(map(str, size))} voxels on the network's grid"
        raise InputError(path, cause, "Check its spacing, or leave --overlap out")
    return working_grid(image, centre.spacing, size)


def segment_all(
    pairs: Iterable[tuple[Sequence[Path], Path]],
    segment_one: Callable[[Sequence[Path]], Segmentation],
    probabilities: bool = False,
    all_components: bool = False,
    entropy: bool = False,
) -> tuple[list[InputError], int]:
    """Writes the masks of volumes.

    Args:
        pairs: the files of each volume, and the path of its mask.
        segment_one: segments the volume of some files.
        probabilities: whether the probabilities are written too.
        all_components: see `Segmentation.labels`.
        entropy: whether the entropy is written too.

    Returns:
        (the errors of the volumes that have no mask, how many volumes are larger than the network's size).
    """
    errors, count = [], 0
    for files, target in pairs:
        try:
            result = segment_one(files)
            if probabilities:
                result.write_probabilities(target)
            if entropy:
                result.write_entropy(target)
            result.write_mask(target, all_components)
        except InputError as error:
            errors.append(error)
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            errors.append(InputError(files[0], "out of memory", "Close other programs, or give it more memory"))
            continue
        count += result.is_larger
        if not sys.stderr.isatty():
            print(printable(str(target)), flush=True)
    return errors, count
