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

from vnet_fast import formats
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import replacing
from vnet_fast.intensity import from_ranks, normalise, to_ranks

# raised when what is stored, or how it is computed, changes
CACHE_FORMAT = 1


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


def prepare(name, values, mask, labels):
    """A PreparedCase from intensities and labels on the network's grid, NaN outside of the image."""
    ranks, table = to_ranks(normalise(values))
    return PreparedCase(name, ranks, table, np.ascontiguousarray(mask, dtype=np.uint8), tuple(labels))


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
        errors, prepared = [], []
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for result in progress(pool.map(self._load_or_error, cases)):
                (errors if isinstance(result, InputError) else prepared).append(result)
        if errors:
            raise InputErrors(errors)
        return prepared

    def _load_or_error(self, case):
        try:
            entry = self.folder / f"{self.key(case)}.npz"
            return self._read(entry, case.name) or self._make(entry, case)
        except InputError as error:
            return error

    def key(self, case):
        """Hexadecimal digest of the files' content and the settings."""
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, self.spacing, self.size]).encode())
        for volume in (case.image, case.mask):
            for path in formats.files_of(volume):
                formats.check_regular(path)
                try:
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
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
        # imported here: training from the cache needs no image library
        from vnet_fast import volumes

        image = volumes.read_image(case.image)
        mask = volumes.read_mask(case.mask, image, case.image)
        grid = volumes.working_grid(image, self.spacing, self.size)
        labels = np.unique(volumes.sitk.GetArrayViewFromImage(mask)).tolist()
        try:
            prepared = prepare(case.name, volumes.image_on_grid(image, grid), volumes.mask_on_grid(mask, grid), labels)
        except ValueError as error:
            raise InputError(case.image, f"{error} on the network's grid", "Check it, --spacing and --volume") from None
        arrays = {"ranks": prepared.ranks, "table": prepared.table, "mask": prepared.mask}
        try:
            with replacing(entry) as file:
                np.savez(file, labels=np.array(labels), **arrays)
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.folder, cause, "Choose another --cache with room and permission") from None
        return prepared
