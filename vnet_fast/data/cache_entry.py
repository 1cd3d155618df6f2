"""An entry of the cache: a `.npz` file with the arrays of a prepared case and a digest of them.

What an entry says about itself is compared with what the run needs before anything is allocated.
"""

import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vnet_fast.data.intensity import RANK_LEVELS
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.io.header import MAX_CHANNELS
from vnet_fast.io.integrity import CHUNK

# of SHA-256, of which the keys are made too
DIGEST_BYTES = 32
LABEL_LEVELS = 256
# of an entry beside its arrays
MAX_OVERHEAD = 1 << 16
# of a .npy file of version 1.0: magic, version, length of the header
PREFIX = struct.Struct("<6sBBH")
# before a member of an archive: lengths of its name and of what else its header has
LOCAL = struct.Struct("<26x2H")
# of the end of an archive: signature, and bytes of the list of its members
END, END_SIGNATURE = struct.Struct("<4s8xL6x"), b"PK\5\6"
# the share by which float32 may be off
ROUNDING = 1e-3
# what reading a damaged archive may raise
DAMAGE = (
    EOFError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, RuntimeError, MemoryError,
    zlib.error, struct.error, zipfile.BadZipFile,
)  # fmt: skip


class DamagedEntry(Exception):  # noqa: N818 - an entry, not an error of the user
    """An entry is not what the run needs, with the reason."""


def write_entry(file: IO[bytes], key: str, prepared: PreparedCase) -> None:
    """Writes a prepared case.

    Args:
        file: an open file.
        key: of the entry.
        prepared: the case.
    """
    arrays: dict[str, NDArray[Any]] = {
        "channels": np.array([prepared.channels], dtype=np.uint32),
        "labels": np.array(prepared.labels, dtype=np.uint8),
        "extent": np.array(prepared.extent, dtype=np.uint32),
        "covering": np.array(prepared.covering_size, dtype=np.uint32),
        "ranks": prepared.ranks,
        "table": prepared.table,
        "mask": prepared.mask,
    }
    digest = np.frombuffer(compute_digest(key, arrays), dtype=np.uint8)
    np.savez(file, digest=digest, **arrays)  # type: ignore[arg-type]  # its types confuse arrays with options


def compute_digest(key: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The digest of arrays, of their names, types and shapes, and of the key that they were written for."""
    digest = hashlib.sha256(key.encode())
    for name in ("channels", "labels", "extent", "covering", "ranks", "table", "mask"):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def read_entry(
    file: IO[bytes], key: str, name: str, size: Sequence[int], whole: bool = False, raw: Sequence[bool] = ()
) -> PreparedCase:
    """Reads a prepared case.

    Args:
        file: an open file.
        key: of the entry.
        name: of the case.
        size: voxels, x y z, that the case must have.
        whole: whether it may have more.
        raw: of each channel, whether its intensities are not normalised.

    Raises:
        OSError: if the file can't be read.
        DamagedEntry: if it is not the entry of this key, or has another size, or values that no case has.
    """
    x, y, z = size
    try:
        arrays = _read_arrays(file, (z, y, x), whole)
    except DAMAGE:
        raise DamagedEntry("not a whole entry") from None
    digest = arrays.pop("digest").tobytes()
    if compute_digest(key, arrays) != digest:
        raise DamagedEntry("its digest differs")
    _check_values(arrays, size, raw)
    labels, extent = tuple(arrays["labels"].tolist()), tuple(map(tuple, arrays["extent"].tolist()))
    covering = tuple(arrays["covering"].tolist())
    return PreparedCase(name, arrays["ranks"], arrays["table"], arrays["mask"], labels, extent, covering)


def mapped(path: Path, prepared: PreparedCase) -> PreparedCase:
    """A case whose ranks and mask are read from its entry when they are needed, and are not held in memory.

    Args:
        path: of the entry, which `read_entry` has verified or `write_entry` has written. It may be deleted or replaced
            afterwards, but not changed.
        prepared: the case.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        places = [_place(file, archive.getinfo(f"{name}.npy")) for name in ("ranks", "mask")]
    # PyTorch keeps no file open, of which a process may have about a thousand; private, so that it can be written to
    try:
        content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    except UnicodeEncodeError:
        # a path that is not UTF-8
        content = np.memmap(path, np.uint8, "c")
    arrays: list[NDArray[Any]] = [prepared.ranks, prepared.mask]
    ranks, mask = (
        content[place : place + like.nbytes].view(like.dtype).reshape(like.shape)
        for like, place in zip(arrays, places, strict=True)
    )
    return replace(prepared, ranks=ranks, mask=mask)


def _place(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the numbers of a stored array begin in an archive."""
    file.seek(member.header_offset)
    name, extra = LOCAL.unpack(file.read(LOCAL.size))
    start = member.header_offset + LOCAL.size + name + extra
    file.seek(start)
    *_, length = PREFIX.unpack(file.read(PREFIX.size))
    return int(start + PREFIX.size + length)


def _read_arrays(file: IO[bytes], shape: tuple[int, int, int], whole: bool) -> dict[str, NDArray[Any]]:
    """The arrays of an entry, of which only the numbers of channels and labels are not known before; or of any size,
    if `whole`.
    """
    # what an entry says about itself is compared with the length of the file afterwards
    channels, covering = _stored_size(file)
    if whole:
        shape = covering
    several = () if channels == 1 else (channels,)
    kinds: dict[str, tuple[type[np.generic], tuple[int, ...] | None]] = {
        "digest": (np.uint8, (DIGEST_BYTES,)),
        "channels": (np.uint32, (1,)),
        "labels": (np.uint8, None),
        "extent": (np.uint32, (len(shape), 2)),
        "covering": (np.uint32, (len(shape),)),
        "ranks": (np.uint16, (*several, *shape)),
        "table": (np.float32, (*several, RANK_LEVELS)),
        "mask": (np.uint8, shape),
    }
    expected = sum(math.prod(shape or (0,)) * np.dtype(kind).itemsize for kind, shape in kinds.values())
    if not expected <= file.seek(0, 2) <= expected + MAX_OVERHEAD:
        raise ValueError("another length")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if [member.filename for member in members] != [f"{name}.npy" for name in kinds]:
            raise ValueError("other arrays")
        return {
            name: _read_array(archive, member, np.dtype(kind), shape)
            for member, (name, (kind, shape)) in zip(members, kinds.items(), strict=True)
        }


def _stored_size(file: IO[bytes]) -> tuple[int, tuple[int, int, int]]:
    """The number of channels of an entry, and the (z, y, x) voxels that cover its image."""
    # the list of another file's members could be longer than memory
    signature, length = END.unpack(_last_bytes(file, END.size))
    if signature != END_SIGNATURE or length > MAX_OVERHEAD:
        raise ValueError("not an archive of few members")
    with zipfile.ZipFile(file) as archive:
        (channels,) = _read_array(archive, archive.getinfo("channels.npy"), np.dtype(np.uint32), (1,)).tolist()
        x, y, z = _read_array(archive, archive.getinfo("covering.npy"), np.dtype(np.uint32), (3,)).tolist()
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError("another number of channels")
    return channels, (z, y, x)


def _last_bytes(file: IO[bytes], count: int) -> bytes:
    file.seek(-count, 2)
    return file.read(count)


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> NDArray[Any]:
    """An array of a type and a shape, or if that is None, of 1 to 256 numbers."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("compressed")
    with archive.open(member) as file:
        *_, length = PREFIX.unpack(file.read(PREFIX.size))
        header = file.read(length)
        count = (member.file_size - PREFIX.size - length) // dtype.itemsize
        if shape is None:
            shape = (count,) if 1 <= count <= LABEL_LEVELS else ()
        # a header that is not the expected one is not even parsed
        if header.rstrip() != _header(dtype, shape) or count != math.prod(shape):
            raise ValueError("another type or shape")
        array = np.empty(shape, dtype)
        target = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(target), CHUNK):
            part = target[start : start + CHUNK]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # missing in its types
                raise EOFError
        if file.read(1):
            raise ValueError("longer than its shape")
    return array


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The header that NumPy writes for an array, without the padding, which depends on the version."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()[PREFIX.size :].rstrip()


def _check_values(arrays: Mapping[str, NDArray[Any]], size: Sequence[int], raw: Sequence[bool]) -> None:
    """Raises a DamagedEntry if arrays have values that preparing a case can't give."""
    mask, labels = arrays["mask"].reshape(-1), arrays["labels"]
    for number, table in enumerate(arrays["table"].reshape(-1, RANK_LEVELS)):
        is_raw = number < len(raw) and raw[number]
        # of numbers with unit variance, the largest is at most the root of their count
        largest = float(np.finfo(np.float32).max) if is_raw else math.sqrt(mask.size) * (1 + ROUNDING)
        # written so that NaN fails
        if not (np.all(table[1:] >= table[:-1]) and -largest <= table[0] and table[-1] <= largest):
            raise DamagedEntry("its table is not of normalised intensities")
    if np.any(labels[1:] <= labels[:-1]):
        raise DamagedEntry("its labels are not sorted")
    if np.any(arrays["covering"] < size):
        raise DamagedEntry("its whole size is smaller than the grid")
    first, end = arrays["extent"].T
    if np.any(first >= end) or np.any(end > arrays["mask"].shape):
        raise DamagedEntry("its extent is not a part of the grid")
    counts = np.zeros(LABEL_LEVELS, dtype=np.int64)
    for start in range(0, mask.size, CHUNK):
        # NumPy widens what it counts to eight bytes
        counts += np.bincount(mask[start : start + CHUNK], minlength=LABEL_LEVELS)
    # beyond the edge of its file, a mask is background
    if set(np.flatnonzero(counts).tolist()) - set(labels.tolist()) - {0}:
        raise DamagedEntry("its mask has labels that its file has not")
