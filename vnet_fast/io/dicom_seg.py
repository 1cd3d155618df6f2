"""Reads DICOM Segmentations: their segments, the places of their frames and the voxels of these.

The elements of a file are read by pydicom, and what they state is checked here.

Source:
    DICOM PS3.3, section A.51 (Segmentation IOD) and C.8.20 (its modules), and A.51.6 for label maps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_elements import need, need_integer, read_elements, reading
from vnet_fast.io.dicom_frames import check_count, geometry, of_frame, position
from vnet_fast.io.dicom_meta import LABEL_MAP, SEGMENTATION
from vnet_fast.io.dicom_seg_voxels import MAX_LABEL, unpacker
from vnet_fast.io.header import MAX_VOXELS
from vnet_fast.io.integrity import COPY_AGAIN


@dataclass(frozen=True)
class Frame:
    """A frame of a segmentation.

    Args:
        index: of its voxels.
        segment: whose voxels it has; 0 in a label map, where each voxel has the number of its segment.
        position: centre of its first voxel, mm, x y z.
    """

    index: int
    segment: int
    position: NDArray[np.float64]


@dataclass(frozen=True)
class Content:
    """What a DICOM Segmentation holds.

    Args:
        path: of its file.
        names: the labels of its segments by number, without those that have none.
        frames: at least one.
        size: of a frame, voxels, x y.
        spacing: of a frame, mm, x y.
        axes: (3, 3), whose columns are the unit vectors along x and y of the frames, and across them.
        gaps: distance and thickness of slices that it states, mm; 0 where it does not.
        frame_of_reference: its identifier; empty if it has none.
        voxels: returns the voxels of a frame by its index, (y, x) uint8, 0 or 1, or numbers of segments.
    """

    path: Path
    names: dict[int, str]
    frames: tuple[Frame, ...]
    size: tuple[int, int]
    spacing: tuple[float, float]
    axes: NDArray[np.float64]
    gaps: tuple[float, float]
    frame_of_reference: str
    voxels: Callable[[int], NDArray[np.uint8]]


def read_names(path: Path) -> dict[int, str]:
    """Reads the labels of a segmentation's segments by their number, without those that have none.

    Raises:
        InputError: if the file can't be read.
    """
    dataset = _read(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SegmentSequence"])
    with reading(path):
        return _names(path, dataset)


def read_content(path: Path) -> Content:
    """Reads a segmentation.

    Raises:
        InputError: if the file is damaged, or holds anything else than segments on parallel frames in a patient.
    """
    dataset = _read(path)
    with reading(path):
        kind = str(dataset.get("SegmentationType", ""))
        rows, columns = (need_integer(path, dataset, name) for name in ("Rows", "Columns"))
        # some programs leave it out of a single frame
        count = int(dataset.get("NumberOfFrames") or 1)
        if min(count, rows, columns) < 1 or rows * columns > MAX_VOXELS:
            raise InputError(path, f"its header gives {count} frames of {columns} x {rows} voxels", COPY_AGAIN)
        voxels = unpacker(path, dataset, kind, (count, rows, columns))
        names = _names(path, dataset)
        numbers = {int(item.SegmentNumber) for item in dataset.SegmentSequence}
        groups = list(need(path, dataset, "PerFrameFunctionalGroupsSequence"))
        shared = [*dataset.get("SharedFunctionalGroupsSequence", []), None][0]
        check_count(path, groups, count)
        frames = tuple(_frame(path, index, group, shared, kind) for index, group in enumerate(groups))
        unknown = sorted({frame.segment for frame in frames} - numbers - {0})
        if unknown:
            raise InputError(path, f"damaged: it does not describe segment {unknown[0]}", COPY_AGAIN)
        spacing, axes, gaps = geometry(path, groups, shared)
        reference = str(dataset.get("FrameOfReferenceUID", ""))
    return Content(path, names, frames, (columns, rows), spacing, axes, gaps, reference, voxels)


def _read(path: Path, **how: Any) -> Any:
    """The elements of a segmentation."""
    dataset = read_elements(path, **how)
    with reading(path):
        if str(dataset.get("SOPClassUID", "")) not in (SEGMENTATION, LABEL_MAP):
            raise InputError(path, "truncated or damaged: not a DICOM Segmentation", COPY_AGAIN)
    return dataset


def _names(path: Path, dataset: Any) -> dict[int, str]:
    """The labels of the segments; an InputError unless their numbers can be those of a mask's labels."""
    names: dict[int, str] = {}
    for item in need(path, dataset, "SegmentSequence"):
        number = need_integer(path, item, "SegmentNumber")
        # in a label map the background may be a segment
        if not 0 <= number <= MAX_LABEL:
            cause = f"has segment {number}, and a mask has labels up to {MAX_LABEL}"
            raise InputError(path, cause, "Export fewer segments")
        if number in names:
            raise InputError(path, f"damaged: it describes segment {number} twice", COPY_AGAIN)
        label = str(item.get("SegmentLabel", "") or "")
        names[number] = " ".join("".join(c if c.isprintable() else " " for c in label).split())
    return {number: name for number, name in names.items() if name and number}


def _frame(path: Path, index: int, group: Any, shared: Any, kind: str) -> Frame:
    segment = 0
    if kind != "LABELMAP":
        item = of_frame(path, group, shared, "SegmentIdentificationSequence")
        segment = need_integer(path, item, "ReferencedSegmentNumber")
        if segment < 1:
            raise InputError(path, f"damaged: frame {index + 1} is of segment {segment}", COPY_AGAIN)
    return Frame(index, segment, position(path, index, group, shared))
