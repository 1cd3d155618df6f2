"""Prepares cases: resamples volumes and masks to the network's grid, and normalises the intensities."""

import contextvars
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vnet_fast.data.cases import Case
from vnet_fast.data.intensity import from_ranks, normalise, to_ranks
from vnet_fast.errors import InputError, InputErrors

if TYPE_CHECKING:
    import SimpleITK as sitk

T = TypeVar("T")
MAX_THREADS = 8
# the label of voxels that do not count, in the masks of a data set that has some
IGNORED = 255
# of a grid that covers a volume: 3 GB of ranks and labels
MAX_VOXELS = 1 << 30


class Progress(Protocol):
    """Wraps an iterator over results, for example in a progress bar."""

    def __call__(self, results: Iterator[T], /) -> Iterable[T]:
        """Returns the same results, in the same order."""


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network's grid.

    Args:
        name: of the case.
        ranks: (z, y, x) uint16, or (C, z, y, x) of several channels, see `intensity.to_ranks`.
        table: (65536,) or (C, 65536) float32, the normalised intensity of each rank; of CT that in the file, until the
            data set is known, see `channels.scale_case`.
        mask: (z, y, x) uint8 labels.
        labels: the labels in the mask's file, sorted.
        extent: along each axis z, y, x the first voxel in the image and the first one behind it; empty if the image
            covers the whole grid. Around a small image the grid has voxels that the file has not.
        covering: voxels along x, y, z that the grid would need to cover the whole image, or has if it is larger; empty
            if it covers it.
    """

    name: str
    ranks: NDArray[np.uint16]
    table: NDArray[np.float32]
    mask: NDArray[np.uint8]
    labels: tuple[int, ...]
    extent: tuple[tuple[int, int], ...] = ()
    covering: tuple[int, ...] = ()

    @property
    def covering_size(self) -> tuple[int, ...]:
        """`covering`, also where that is empty."""
        return self.covering or self.shape[::-1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels, (z, y, x)."""
        z, y, x = self.mask.shape
        return z, y, x

    @property
    def channels(self) -> int:
        """The number of channels."""
        return 1 if self.ranks.ndim == 3 else len(self.ranks)

    def of_channel(self, number: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Ranks (z, y, x) and table (65536,) of a channel."""
        if self.ranks.ndim == 3:
            return self.ranks, self.table
        return self.ranks[number], self.table[number]

    @property
    def inside(self) -> tuple[slice, ...]:
        """Slices that crop (z, y, x) arrays to the voxels that lie in the image."""
        return tuple(slice(first, end) for first, end in self.extent) or (slice(None),) * 3

    @property
    def image(self) -> NDArray[np.float32]:
        """The intensities, (z, y, x) or (C, z, y, x) float32, with zero mean and unit variance over the foreground."""
        if self.ranks.ndim == 3:
            return from_ranks(self.ranks, self.table)
        return np.stack([from_ranks(*self.of_channel(number)) for number in range(self.channels)])

    @property
    def fingerprint(self) -> bytes:
        """Digest of the image: equal for two copies, whatever their names, formats and masks."""
        return hashlib.blake2b(self.ranks.tobytes() + self.table.tobytes(), digest_size=16).digest()


def prepare(
    name: str,
    values: ArrayLike,
    mask: ArrayLike,
    labels: Iterable[int],
    covering: tuple[int, ...] = (),
    raw: Sequence[bool] = (),
) -> PreparedCase:
    """Makes a PreparedCase of a volume and its mask on the network's grid.

    Args:
        name: of the case.
        values: (z, y, x) intensities, or (C, z, y, x) of several channels, NaN outside of the image.
        mask: (z, y, x) labels.
        labels: the labels in the mask's file, sorted.
        covering: see PreparedCase.
        raw: of each channel, whether its intensities are kept as they are, because the data set's normalise them; all
            are normalised without.

    Raises:
        ValueError: if all intensities of a channel are the same.
    """
    values = np.asarray(values)
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    if values.ndim == 3:
        ranks, table = _ranked(values, any(raw))
    else:
        kept = [number < len(raw) and raw[number] for number in range(len(values))]
        ranks, table = map(np.stack, zip(*map(_ranked, values, kept), strict=True))
    extent = _extent(~np.isnan(values if values.ndim == 3 else values[0]))
    return PreparedCase(name, ranks, table, mask, tuple(labels), extent, covering)


def _ranked(values: NDArray[np.float32], raw: bool) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Ranks and table of a channel, normalised or as it is."""
    normalised = normalise(values)
    if not raw:
        return to_ranks(normalised)
    return to_ranks(np.where(np.isnan(values), np.nanmin(values), values).astype(np.float32))


def _extent(inside: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """The range of each axis in which an array is true: a box, because the grid is parallel to the image."""
    ranges = []
    for other_axes in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(inside.any(other_axes))
        ranges.append((int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(ranges)


def read_case(
    case: Case, spacing: Sequence[float], size: Sequence[int], whole: bool = False, raw: Sequence[bool] = ()
) -> tuple[list["sitk.Image"], "sitk.Image", PreparedCase]:
    """Reads and prepares a case.

    Args:
        case: the Case.
        spacing: mm, x y z, of the network's grid.
        size: voxels, x y z, of the network's grid.
        whole: whether the grid is enlarged, where it is smaller, to cover the whole image.
        raw: see `prepare`.

    Returns:
        the image of each channel and the mask, as from `volumes.read_channels` and `volumes.read_mask`, and the
        PreparedCase.

    Raises:
        InputError, InputErrors: for the image, the mask or both.
    """
    # imported here, because training from the cache needs no image library
    from vnet_fast.io.grid import covering_size, image_on_grid, mask_on_grid, working_grid

    images, mask, labels = _read_files(case)
    image = images[0]
    grid = working_grid(image, spacing, size)
    covering = covering_size(image, grid)
    if whole:
        if math.prod(covering) > MAX_VOXELS:
            cause = f"takes {' x '.join(map(str, covering))} voxels on the network's grid"
            raise InputError(case.image, cause, "Check its spacing, or give a coarser --spacing")
        grid = working_grid(image, spacing, covering)
    try:
        values = [image_on_grid(channel, grid) for channel in images]
        found = values[0] if len(values) == 1 else np.stack(values)
        prepared = prepare(case.name, found, mask_on_grid(mask, grid), labels, covering, raw)
    except ValueError as error:
        remedy = "Check the volume, --spacing and --volume"
        raise InputError(case.image, f"{error} on the network's grid", remedy) from None
    return images, mask, prepared


def _read_files(case: Case) -> tuple[list["sitk.Image"], "sitk.Image", list[int]]:
    """The channels and the mask of a case, and the mask's labels."""
    from vnet_fast.io import volumes
    from vnet_fast.io.grid import labels_in

    try:
        images = volumes.read_channels(case.images)
    except InputError as image_error:
        try:
            volumes.read_mask(case.mask)
        except InputError as mask_error:
            raise InputErrors([image_error, mask_error]) from None
        raise
    mask = volumes.read_mask(case.mask, images[0], case.image)
    return images, mask, labels_in(mask)


def map_cases(function: Callable[[Case], T], cases: Sequence[Case], progress: Progress = iter) -> list[T]:
    """Calls a function for each case, several at once in threads.

    Args:
        function: of a Case.
        cases: Cases.
        progress: wraps the iterator over the results, for example in a progress bar.

    Returns:
        list of results in the order of `cases`.

    Raises:
        InputErrors: all errors of the function; its `results` are those of the other cases.
    """

    def attempt(case: Case) -> tuple[list[T], list[InputError]]:
        try:
            return [function(case)], []
        except InputError as error:
            return [], [error]
        except InputErrors as several:
            return [], several.errors

    results: list[T] = []
    errors: list[InputError] = []
    # whether anything is said belongs to the context
    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for result, error in progress(pool.map(lambda case: context.copy().run(attempt, case), cases)):
            errors += error
            results += result
    if errors:
        raise InputErrors(errors, results)
    return results
