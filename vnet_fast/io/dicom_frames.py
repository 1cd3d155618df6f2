"""The places of the frames of a DICOM file, each of which describes itself.

ITK places all frames by the first two, so that it would not notice frames in another order, of two volumes, or missing.

Source:
    DICOM PS3.3, section C.7.6.16 (Multi-frame Functional Groups Module).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_elements import check_installed, need, read_elements, reading
from vnet_fast.io.header import Placement, check_placement, triple
from vnet_fast.io.integrity import COPY_AGAIN


class Frames(NamedTuple):
    """Where the frames of a file lie.

    Args:
        spacing: of a frame, mm, x y.
        axes: (3, 3), whose columns are the unit vectors along x and y of the frames, and across them.
        positions: centres of their first voxels, mm, x y z.
    """

    spacing: tuple[float, float]
    axes: NDArray[np.float64]
    positions: list[tuple[float, float, float]]


def read_frames(path: Path, count: int) -> Frames | None:
    """Where the frames of a file lie; None if it does not describe each of them.

    Args:
        path: of the file.
        count: of its frames.

    Raises:
        InputError: if pydicom is not installed; or the file is damaged, or its frames differ in spacing, orientation
            or scale.
    """
    check_installed(path, "pydicom", of="DICOM files of several frames")
    dataset = read_elements(path, stop_before_pixels=True)
    with reading(path):
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        shared = [*dataset.get("SharedFunctionalGroupsSequence", []), None][0]
        if not groups:
            return None
        check_count(path, groups, count)
        spacing, axes, _ = geometry(path, groups, shared)
        positions = [position(path, index, group, shared) for index, group in enumerate(groups)]
        _check_scales(path, groups)
    return Frames(spacing, axes, [triple(place.tolist()) for place in positions])


def check_count(path: Path, groups: Sequence[Any], count: int) -> None:
    """Raises an InputError unless a file describes as many frames as it has."""
    if len(groups) != count:
        raise InputError(path, f"damaged: it has {count} frames, and describes {len(groups)}", COPY_AGAIN)


def of_frame(path: Path, group: Any, shared: Any, sequence: str) -> Any:
    """The item of a functional group that a frame has by itself, or that all frames share."""
    for item in (group, shared):
        if item is not None and item.get(sequence):
            return item.get(sequence)[0]
    cause = f"its frames do not say where they lie in the patient or what they show ({sequence} is missing)"
    raise InputError(path, cause, "Export it again")


def position(path: Path, index: int, group: Any, shared: Any) -> NDArray[np.float64]:
    """The centre of the first voxel of a frame, mm, x y z."""
    stated = need(path, of_frame(path, group, shared, "PlanePositionSequence"), "ImagePositionPatient")
    place = np.array(triple(map(float, stated)))
    if not np.isfinite(place).all():
        raise InputError(path, f"damaged: the position of frame {index + 1} is not three numbers", COPY_AGAIN)
    return place


def geometry(
    path: Path, groups: Sequence[Any], shared: Any
) -> tuple[tuple[float, float], NDArray[np.float64], tuple[float, float]]:
    """Spacing and axes of all frames, and the distance and thickness of slices that they state."""
    geometries: list[tuple[float, ...]] = []
    gaps = 0.0, 0.0
    for group in groups:
        measures = of_frame(path, group, shared, "PixelMeasuresSequence")
        orientation = of_frame(path, group, shared, "PlaneOrientationSequence")
        # the distance of rows comes first
        y, x = map(float, need(path, measures, "PixelSpacing"))
        cosines = [float(value) for value in need(path, orientation, "ImageOrientationPatient")]
        geometries.append((x, y, *cosines))
        gaps = _length(measures.get("SpacingBetweenSlices")), _length(measures.get("SliceThickness"))
    x, y, *cosines = geometries[0]
    if len(cosines) != 6 or not np.isfinite(geometries[0]).all():
        raise InputError(path, "damaged: the orientation of its frames is not six numbers", COPY_AGAIN)
    if not all(np.allclose(geometry, geometries[0], rtol=1e-3, atol=1e-4) for geometry in geometries):
        raise InputError(path, "its frames differ in spacing or orientation", "Export it on the slices of one series")
    along, down = np.array(cosines[:3]), np.array(cosines[3:])
    axes = np.stack([along, down, np.cross(along, down)], axis=1)
    check_placement(path, Placement((x, y, 1.0), (0.0, 0.0, 0.0), tuple(axes.ravel().tolist())))
    return (x, y), axes, gaps


def _length(stated: Any) -> float:
    length = abs(float(stated or 0))
    return length if math.isfinite(length) else 0.0


def _check_scales(path: Path, groups: Sequence[Any]) -> None:
    """Raises an InputError if the voxels of frames have different scales: ITK takes the first one for all."""
    scales = set()
    for group in groups:
        for item in group.get("PixelValueTransformationSequence") or [{}]:
            scales.add((item.get("RescaleSlope"), item.get("RescaleIntercept")))
    if len(scales) > 1:
        raise InputError(path, "its frames have different scales of intensity", "Convert it to another format")
