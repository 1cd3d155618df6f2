"""Prepared cases, and their cache on disk."""

import hashlib
import json
import zipfile
import zlib

import numpy as np

from vnet_fast.data.preparation import PreparedCase, for_each, read_case
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.io import formats
from vnet_fast.io.integrity import CHUNK

# raised when what is stored, or how it is computed, changes
CACHE_FORMAT = 2


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
        self.spacing, self.size = tuple(map(float, spacing)), tuple(map(int, size))
        self.folder = make_folder(folder, "Choose another --cache")

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
