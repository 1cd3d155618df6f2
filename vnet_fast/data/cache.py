"""Prepared cases, and their cache on disk."""

import hashlib
import json
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vnet_fast.data.intensity import from_ranks, normalise, to_ranks
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import replacing
from vnet_fast.io import formats
from vnet_fast.io.integrity import CHUNK

# raised when what is stored, or how it is computed, changes
CACHE_FORMAT = 2


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
    grid = volumes.working_grid(image, spacing, size)
    labels = np.unique(volumes.sitk.GetArrayViewFromImage(mask)).tolist()
    try:
        prepared = prepare(case.name, volumes.image_on_grid(image, grid), volumes.mask_on_grid(mask, grid), labels)
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


class Cache:
    """Prepared cases on disk, keyed by the content of their files and the settings.

    Entries are written beside their place and renamed, so that a run that dies leaves no half of
    one and two runs at once write the same; one that can't be read is made again. Reading one needs
    no image library.

    Args:
        folder: made if it is not there.
        spacing: mm, x y z.
        size: voxels, x y z.

    Raises:
        InputError: if the folder can't be made.
    """

    def __init__(self, folder, spacing, size):
        self.folder = Path(folder)
        self.spacing, self.size = tuple(map(float, spacing)), tuple(map(int, size))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self.folder, f"can't be made ({error.strerror})", "Choose another --cache") from None

    def load(self, cases, progress=iter):
        """The prepared cases, in the order of `cases`, made where they are not cached.

        Args:
            cases: list of Case.
            progress: called with an iterator over the results, for a progress bar.

        Raises:
            InputErrors: of all cases that can't be prepared.
        """
        return for_each(self._load, cases, progress)

    def _load(self, case):
        try:
            entry = self.folder / f"{self.key(case)}.npz"
        except InputError:
            # reading says all that is wrong, of the mask too
            read_case(case, self.spacing, self.size)
            raise
        return self._read(entry, case.name) or self._make(entry, case)

    def key(self, case):
        """Hexadecimal digest of the files' content and the settings."""
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, self.spacing, self.size]).encode())
        for volume in (case.image, case.mask):
            for path in formats.files_of(volume):
                formats.check_regular(path)
                try:
                    digest.update(_digest_of_file(path))
                except OSError as error:
                    cause = f"can't be read ({error.strerror})"
                    raise InputError(path, cause, "Check its permissions") from None
            # an image and a mask must not be able to swap files unseen
            digest.update(formats.suffix_of(volume).encode() if formats.suffix_of(volume) else b"dicom")
        return digest.hexdigest()[:32]

    def _read(self, entry, name):
        try:
            with np.load(entry, allow_pickle=False) as arrays:
                labels = tuple(arrays["labels"].tolist())
                return PreparedCase(name, arrays["ranks"], arrays["table"], arrays["mask"], labels)
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            EOFError,
            NotImplementedError,
            zlib.error,
            zipfile.BadZipFile,
        ):
            return None

    def _make(self, entry, case):
        prepared = read_case(case, self.spacing, self.size)[2]
        arrays = {"ranks": prepared.ranks, "table": prepared.table, "mask": prepared.mask}
        try:
            with replacing(entry) as file:
                np.savez(file, labels=np.array(prepared.labels), **arrays)
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.folder, cause, "Choose another --cache with room and permission") from None
        return prepared


def _digest_of_file(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()
