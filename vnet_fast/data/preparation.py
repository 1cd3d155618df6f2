"""Prepares cases: resamples volumes and masks to the network's grid, and normalises the intensities."""

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
        ranks: (z, y, x) uint16, see `intensity.to_ranks`.
        table: (65536,) float32, the normalised intensity of each rank.
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
        return self.covering or self.ranks.shape[::-1]

    @property
    def inside(self) -> tuple[slice, ...]:
        """Slices that crop (z, y, x) arrays to the voxels that lie in the image."""
        return tuple(slice(first, end) for first, end in self.extent) or (slice(None),) * 3

    @property
    def image(self) -> NDArray[np.float32]:
        """The intensities, (z, y, x) float32, with zero mean and unit variance over the foreground."""
        return from_ranks(self.ranks, self.table)

    @property
    def fingerprint(self) -> bytes:
        """Digest of the image: equal for two copies, whatever their names, formats and masks."""
        return hashlib.blake2b(self.ranks.tobytes() + self.table.tobytes(), digest_size=16).digest()


def prepare(
    name: str, values: ArrayLike, mask: ArrayLike, labels: Iterable[int], covering: tuple[int, ...] = ()
) -> PreparedCase:
    """Makes a PreparedCase of a volume and its mask on the network's grid.

    Args:
        name: of the case.
        values: (z, y, x) intensities, NaN outside of the image.
        mask: (z, y, x) labels.
        labels: the labels in the mask's file, sorted.
        covering: see PreparedCase.

    Raises:
        ValueError: if all intensities are the same.
    """
    values = np.asarray(values)
    ranks, table = to_ranks(normalise(values))
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    return PreparedCase(name, ranks, table, mask, tuple(labels), _extent(~np.isnan(values)), covering)


def _extent(inside: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """The range of each axis in which an array is true: a box, because the grid is parallel to the image."""
    ranges = []
    for other_axes in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(inside.any(other_axes))
        ranges.append((int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(ranges)


def read_case(
    case: Case, spacing: Sequence[float], size: Sequence[int], whole: bool = False
) -> tuple["sitk.Image", "sitk.Image", PreparedCase]:
    """Reads and prepares a case.

    Args:
        case: the Case.
        spacing: mm, x y z, of the network's grid.
        size: voxels, x y z, of the network's grid.
        whole: whether the grid is enlarged, where it is smaller, to cover the whole image.

    Returns:
        image and mask, as from `volumes.read_image` and `volumes.read_mask`, and the PreparedCase.

    Raises:
        InputError, InputErrors: for the image, the mask or both.
    """
    # imported here, because training from the cache needs no image library
    from vnet_fast.io import volumes
    from vnet_fast.io.grid import covering_size, image_on_grid, mask_on_grid, working_grid

    try:
        image = volumes.read_image(case.image)
    except InputError as image_error:
        try:
            volumes.read_mask(case.mask)
        except InputError as mask_error:
            raise InputErrors([image_error, mask_error]) from None
        raise
    mask = volumes.read_mask(case.mask, image, case.image)
    grid = working_grid(image, spacing, size)
    covering = covering_size(image, grid)
    if whole:
        if math.prod(covering) > MAX_VOXELS:
            cause = f"takes {' x '.join(map(str, covering))} voxels on the network's grid"
            raise InputError(case.image, cause, "Check its spacing, or give a coarser --spacing")
        grid = working_grid(image, spacing, covering)
    labels = np.unique(volumes.sitk.GetArrayViewFromImage(mask)).tolist()
    try:
        prepared = prepare(case.name, image_on_grid(image, grid), mask_on_grid(mask, grid), labels, covering)
    except ValueError as error:
        remedy = "Check the volume, --spacing and --volume"
        raise InputError(case.image, f"{error} on the network's grid", remedy) from None
    return image, mask, prepared


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
    with ThreadPoolExecutor(max_workers=min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for result, error in progress(pool.map(attempt, cases)):
            errors += error
            results += result
    if errors:
        raise InputErrors(errors, results)
    return results
