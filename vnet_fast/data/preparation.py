"""Prepared cases: volumes and masks on the network's grid, with normalised intensities."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vnet_fast.data.intensity import from_ranks, normalise, to_ranks
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io.grid import image_on_grid, mask_on_grid, working_grid


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network's grid.

    Args:
        name: of the case.
        ranks: (z, y, x) uint16, see `intensity.to_ranks`.
        table: (65536,) float32, the normalised intensity of each rank.
        mask: (z, y, x) uint8 labels.
        labels: the labels in the mask's file, sorted.
    """

    name: str
    ranks: np.ndarray
    table: np.ndarray
    mask: np.ndarray
    labels: tuple[int, ...]

    @property
    def image(self):
        """(z, y, x) float32, zero mean and unit variance over the foreground."""
        return from_ranks(self.ranks, self.table)

    @property
    def fingerprint(self):
        """Digest of the image: equal for two copies, whatever their names, formats and masks."""
        return hashlib.blake2b(self.ranks.tobytes() + self.table.tobytes(), digest_size=16).digest()


def prepare(name, values, mask, labels):
    """A PreparedCase from intensities and labels on the network's grid, NaN outside of the image."""
    ranks, table = to_ranks(normalise(values))
    return PreparedCase(name, ranks, table, np.ascontiguousarray(mask, dtype=np.uint8), tuple(labels))


def read_case(case, spacing, size):
    """Reads and prepares a case.

    Args:
        case: the Case.
        spacing: mm, x y z, of the network's grid.
        size: voxels, x y z, of the network's grid.

    Returns:
        (image, mask, PreparedCase); image and mask as `volumes.read_image` and `read_mask` return.

    Raises:
        InputError, InputErrors: of its image, its mask or both.
    """
    # imported here: training from the cache needs no image library
    from vnet_fast.io import volumes

    try:
        image = volumes.read_image(case.image)
    except InputError as error:
        try:
            volumes.read_mask(case.mask)
        except InputError as of_mask:
            raise InputErrors([error, of_mask]) from None
        raise
    mask = volumes.read_mask(case.mask, image, case.image)
    grid = working_grid(image, spacing, size)
    labels = np.unique(volumes.sitk.GetArrayViewFromImage(mask)).tolist()
    try:
        prepared = prepare(case.name, image_on_grid(image, grid), mask_on_grid(mask, grid), labels)
    except ValueError as error:
        raise InputError(case.image, f"{error} on the network's grid", "Check it, --spacing and --volume") from None
    return image, mask, prepared


def for_each(function, cases, progress=iter):
    """What a function returns for each case, several at once.

    Args:
        function: of a Case.
        cases: list of Case.
        progress: called with an iterator over the results, for a progress bar.

    Returns:
        list of results in the order of `cases`.

    Raises:
        InputErrors: of all cases, if the function raised any; its `results` are those of the others.
    """

    def attempt(case):
        try:
            return function(case), []
        except InputError as error:
            return None, [error]
        except InputErrors as several:
            return None, several.errors

    results, errors = [], []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result, failed in progress(pool.map(attempt, cases)):
            errors += failed
            if not failed:
                results.append(result)
    if errors:
        raise InputErrors(errors, results)
    return results
