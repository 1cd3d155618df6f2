"""The cache of prepared cases on disk."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vnet_fast.data.cache_entry import DAMAGE, DamagedEntry, mapped, read_entry, write_entry
from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import PreparedCase, Progress, map_cases, read_case
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.io import formats
from vnet_fast.io.integrity import CHUNK
from vnet_fast.progress import note

# must be raised when the content of the entries, or its computation, changes
CACHE_FORMAT = 5
# how often a case is read whose files change meanwhile
ATTEMPTS = 3
# bytes of the ranks of a case from which on it stays in its entry
MAPPED = 1 << 24


class Cache:
    """Prepared cases on disk, with keys made of the content of their files and the settings.

    An entry is written to a temporary file and then renamed, so that it is always complete, even if a run is
    killed or two runs write it at once. An entry that is damaged, or is not what the cases need, is prepared again, and
    a line says so. Reading an entry needs no image library.

    Args:
        folder: made if it does not exist.
        spacing: mm, x y z.
        size: voxels, x y z.
        whole: whether the cases keep their whole extent, where it is larger.
        raw: of each channel, whether its intensities are kept as they are in the file.

    Raises:
        InputError: if the folder can't be made.
    """

    def __init__(
        self,
        folder: str | Path,
        spacing: Sequence[float],
        size: Sequence[int],
        whole: bool = False,
        raw: Sequence[bool] = (),
    ) -> None:
        self.spacing, self.size, self.whole = tuple(map(float, spacing)), tuple(map(int, size)), whole
        self.raw = tuple(map(bool, raw))
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

    def holds(self, case: Case) -> bool:
        """Whether there is an entry of a case, sound or damaged."""
        try:
            return os.path.exists(self.folder / f"{self.key(case)}.npz")
        except InputError:
            return False

    def _load_case(self, case: Case) -> PreparedCase:
        for _ in range(ATTEMPTS):
            try:
                key = self.key(case)
            except InputError:
                # reading the case reports the errors of both image and mask
                read_case(case, self.spacing, self.size, self.whole, self.raw)
                raise
            entry = self.folder / f"{key}.npz"
            found, damage = self._read(entry, key, case.name)
            if found:
                return self._kept(entry, found)
            prepared = read_case(case, self.spacing, self.size, self.whole, self.raw)[2]
            # a file that was replaced after it was hashed would leave a wrong entry for good
            if self.key(case) == key:
                self._write(entry, key, prepared)
                if damage:
                    note(f"{entry}: damaged ({damage}), prepared again")
                return self._kept(entry, prepared)
        raise InputError(case.image, "changes while it is read, or its mask does", "Start again when both are complete")

    def key(self, case: Case) -> str:
        """Returns the hexadecimal digest of the content of the case's files and of the settings."""
        settings = [CACHE_FORMAT, self.spacing, self.size, self.whole, self.raw]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for volume in (*case.images, case.mask):
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

    @staticmethod
    def _kept(entry: Path, prepared: PreparedCase) -> PreparedCase:
        """A case as it is kept: large ones stay in their entry, so that there may be more than memory holds."""
        if prepared.ranks.nbytes < MAPPED:
            return prepared
        try:
            return mapped(entry, prepared)
        except (OSError, *DAMAGE):
            # another process has deleted or replaced it
            return prepared

    def _read(self, entry: Path, key: str, name: str) -> tuple[PreparedCase | None, str]:
        """The case of an entry, or None; and what is wrong with the entry, if it is there."""
        try:
            # opening a FIFO would wait for a writer
            if not stat.S_ISREG(os.stat(entry).st_mode):
                raise InputError(entry, "not a regular file", "Delete it, or choose another --cache")
            with open(entry, "rb") as file:
                return read_entry(file, key, name, self.size, self.whole, self.raw), ""
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, error.strerror or str(error)
        except DamagedEntry as error:
            return None, str(error)

    def _write(self, entry: Path, key: str, prepared: PreparedCase) -> None:
        try:
            with replacing(entry) as file:
                write_entry(file, key, prepared)
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.folder, cause, "Choose another --cache with room and permission") from None


def _compute_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()
