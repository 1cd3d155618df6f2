"""Unpacks the voxels of DICOM Segmentations, frame by frame: a file may have many more than fit in memory unpacked."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_elements import DECODE, DEFLATED, need_integer
from vnet_fast.io.integrity import COPY_AGAIN

MAX_LABEL = 255
# transfer syntaxes beside DEFLATED that are read: voxels as they are, and run lengths
PLAIN, RUN_LENGTHS = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"), "1.2.840.10008.1.2.5"
# bits of a voxel, by the type of segmentation
BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}


def unpacker(path: Path, dataset: Any, kind: str, shape: tuple[int, int, int]) -> Callable[[int], NDArray[np.uint8]]:
    """Returns a function that unpacks the voxels of a frame by its index.

    Args:
        path: of the file, for messages.
        dataset: of pydicom.
        kind: the type of segmentation: BINARY, FRACTIONAL or LABELMAP.
        shape: of all frames, (frames, y, x).

    Returns:
        function whose results are (y, x) uint8: 0 or 1, or the numbers of segments in a label map.

    Raises:
        InputError: if the voxels are not what the header states, or are compressed in a way that is not read.
    """
    bits, values = need_integer(path, dataset, "BitsAllocated"), math.prod(shape[1:])
    if int(dataset.get("SamplesPerPixel", 1)) != 1 or bits not in BITS.get(kind, ()):
        raise InputError(path, f"damaged: it is of type {kind[:60] or 'none'} with {bits} bits", COPY_AGAIN)
    packed, syntax = dataset.get("PixelData"), str(dataset.file_meta.TransferSyntaxUID)
    if not packed:
        raise InputError(path, "truncated: it has no voxels (PixelData is missing)", COPY_AGAIN)
    if syntax == RUN_LENGTHS:
        packed = _run_lengths(dataset)
    elif syntax not in (*PLAIN, DEFLATED):
        name = getattr(dataset.file_meta.TransferSyntaxUID, "name", syntax)
        raise InputError(path, f"its voxels are stored as {name}, which is not read", DECODE)
    expected = -(-math.prod(shape) * bits // 8)
    # a byte is added to an odd number of them
    if not expected <= len(packed) <= expected + expected % 2:
        amount = "truncated" if len(packed) < expected else "damaged"
        cause = f"{amount}: {len(packed)} bytes of voxels where its header states {expected}"
        raise InputError(path, cause, COPY_AGAIN)
    highest = need_integer(path, dataset, "MaximumFractionalValue") if kind == "FRACTIONAL" else 1

    def frame(index: int) -> NDArray[np.uint8]:
        if bits == 1:
            first, end = index * values, (index + 1) * values
            part = np.frombuffer(packed[first // 8 : -(-end // 8)], np.uint8)
            found = np.unpackbits(part, bitorder="little")[first % 8 :][:values]
        else:
            found = np.frombuffer(packed, np.dtype(f"<u{bits // 8}"), values, index * values * bits // 8)
            found = _as_labels(path, found, highest if kind == "FRACTIONAL" else 0)
        return found.reshape(shape[1:])

    return frame


def _run_lengths(dataset: Any) -> bytes:
    from pydicom.pixels import get_decoder

    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    return b"".join(bytes(frame) for frame, _ in decoder.iter_buffer(dataset))


def _as_labels(path: Path, found: NDArray[Any], highest: int) -> NDArray[np.uint8]:
    """Voxels of 8 or 16 bits as 0 or 1, where `highest` stands for 1, or as numbers of segments if that is 0."""
    if highest and not np.isin(found, (0, highest)).all():
        raise InputError(path, "a fractional segmentation, which holds no labels", "Export it as a binary one")
    if found.size and found.max() > MAX_LABEL:
        raise InputError(path, f"has voxels of segment {found.max()}, and a mask has labels up to {MAX_LABEL}",
                         "Export fewer segments")  # fmt: skip
    return (found == highest).astype(np.uint8) if highest else found.astype(np.uint8)
