"""The cache of prepared cases on disk."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import PreparedCase, Progress, map_cases, read_case
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.io import formats
from vnet_fast.io.integrity import CHUNK

# must be raised when the content of the entries, or its computation, changes
CACHE_FORMAT = 2
# what reading a damaged entry may raise
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    NotImplementedError,
    zlib.error,
    zipfile.BadZipFile,
)


class Cache:
    """Prepared cases on disk, with keys made of the content of their files and the settings.

    An entry is written to a temporary file and then renamed, so that it is always complete, even if a run is
    killed or two runs write it at once. An entry that can't be read is prepared again. Reading an entry needs no
    image library.

    Args:
        folder: made if it does not exist.
        spacing: mm, x y z.
        size: voxels, x y z.

    Raises:
        InputError: if the folder can't be made.
    """

    def __init__(self, folder: str | Path, spacing: Sequence[float], size: Sequence[int]) -> None:
        self.spacing, self.size = tuple(map(float, spacing)), tuple(map(int, size))
        self.folder = make_folder(folder, "Choose another --cache")

    def load(self, cases: Sequence[Case], progress: Progress = iter) -> list[PreparedCase]:
        """Returns the prepared cases, in the order of `cases`, and prepares those that are not cached.

        Args:
            cases: Cases.
            progress: wraps the iterator over the results, for example in a progress bar.

        Raises:
            InputErrors: for all cases that can't be prepared.
        """
        return map_cases(self._load_case, cases, progress)

    def _load_case(self, case: Case) -> PreparedCase:
        try:
            entry = self.folder / f"{self.key(case)}.npz"
        except InputError:
            # reading the case reports the errors of both image and mask
            read_case(case, self.spacing, self.size)
            raise
        return self._read_entry(entry, case.name) or self._write_entry(entry, case)

    def key(self, case: Case) -> str:
        """Returns the hexadecimal digest of the content of the case's files and of the settings."""
        digest = hashlib.sha256(json.dumps([CACHE_FORMAT, self.spacing, self.size]).encode())
        for volume in (case.image, case.mask):
            for path in formats.files_of(volume):
                formats.check_regular(path)
                try:
                    digest.update(_compute_digest(path))
                except OSError as error:
                    cause = f"can't be read ({error.strerror})"
                    raise InputError(path, cause, "Check its permissions") from None
            # ends the list of files, so that moving a file from the image to the mask changes the key
            digest.update((formats.suffix_of(volume) or "dicom").encode())
        return digest.hexdigest()[:32]

    def _read_entry(self, entry: Path, name: str) -> PreparedCase | None:
        try:
            with np.load(entry, allow_pickle=False) as arrays:
                labels = tuple(arrays["labels"].tolist())
                return PreparedCase(name, arrays["ranks"], arrays["table"], arrays["mask"], labels)
        except DAMAGE:
            return None

    def _write_entry(self, entry: Path, case: Case) -> PreparedCase:
        prepared = read_case(case, self.spacing, self.size)[2]
        try:
            with replacing(entry) as file:
                np.savez(
                    file,
                    labels=np.array(prepared.labels),
                    ranks=prepared.ranks,
                    table=prepared.table,
                    mask=prepared.mask,
                )
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.folder, cause, "Choose another --cache with room and permission") from None
        return prepared


def _compute_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()
