"""Chooses the network's grid for a data set: its spacing, and the size of the windows it is trained on.

The spacing is the median of the cases'. Along an axis on which slices lie far apart it is finer, so that cases with
more slices keep them. On a CPU, where time is short before memory is, it is coarser, if the smallest structure still
has about 40 voxels across.

The windows hold a volume of median extent. If that is more than a number of voxels, they are shortened along the axes
of which they hold the largest share.

Source:
    spacing and windows as in nnU-Net (Isensee et al. 2021). Deviations: the coarser spacing on a CPU; a number of
    voxels in place of a measurement of the memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vnet_fast.data.cases import Case
from vnet_fast.data.classes import Classes
from vnet_fast.data.preparation import map_cases
from vnet_fast.errors import InputErrors
from vnet_fast.progress import track

# of the longest spacing to the others, and of the fewest slices to the others, from which slices lie far apart
ANISOTROPY = 3.0
FINE_PERCENTILE = 10
# voxels across the smallest structure, where a coarser grid learns sooner
ACROSS = 40
# by which a grid may be coarser than that, if a window then holds the whole volume
COARSER = 1.4
# decimals of a spacing in mm
DECIMALS = 3
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """What a plan needs to know of a case, along left, posterior and superior axes.

    Args:
        size: voxels, x y z.
        spacing: mm, x y z.
        structures: dict from class, 1 and up, to the extent of all its voxels together, mm, x y z.
    """

    size: tuple[int, int, int]
    spacing: Triple
    structures: dict[int, Triple]


@dataclass(frozen=True)
class Plan:
    """The network's grid for a data set.

    Args:
        spacing: mm, x y z.
        size: voxels of a window, x y z.
        extent: of the median volume, mm, x y z.
        across: the geometric mean of the extents of the smallest structure, mm; 0 without any structure.
    """

    spacing: Triple
    size: tuple[int, int, int]
    extent: Triple
    across: float

    def __str__(self) -> str:
        """The plan and what it follows from, in a line."""
        size, spacing = " x ".join(map(str, self.size)), " x ".join(f"{length:g}" for length in self.spacing)
        extent = " x ".join(f"{length:.0f}" for length in self.extent)
        structure = f", and their smallest structure {self.across:.0f} mm" if self.across else ""
        return f"{size} voxels of {spacing} mm: volumes measure {extent} mm in the median{structure}"


def find_geometries(cases: Sequence[Case], classes: Classes) -> list[Geometry]:
    """The geometries of all cases whose masks can be read; training reports the errors of the others.

    Args:
        cases: Cases.
        classes: what their labels stand for.

    Raises:
        InputErrors: if none can be read.
    """
    try:
        progress = partial(track, description="planning", unit="cases", total=len(cases))
        return map_cases(lambda case: _geometry(case, classes), cases, progress)
    except InputErrors as several:
        if not several.results:
            raise
        return list(several.results)


def _geometry(case: Case, classes: Classes) -> Geometry:
    # imported here, because training from the cache needs no image library
    from vnet_fast.io.formats import is_segmentation
    from vnet_fast.io.grid import labels_in
    from vnet_fast.io.volumes import read_channels, read_mask, sitk

    # it must lie on the grid of its image; only a DICOM Segmentation may leave out slices
    image = read_channels(case.images)[0] if is_segmentation(case.mask) else None
    mask = sitk.DICOMOrient(read_mask(case.mask, image, case.image), "LPS")
    labels = sitk.GetArrayViewFromImage(mask)
    # of each class, along x, y and z, whether a plane has some of it
    planes: dict[int, list[NDArray[np.bool_]]] = {}
    for label in labels_in(mask):
        for number in classes.merged(label) if label else ():
            found = [(labels == label).any(axes) for axes in ((0, 1), (0, 2), (1, 2))]
            before = planes.get(number, found)
            planes[number] = [ours | theirs for ours, theirs in zip(found, before, strict=True)]
    spacing = mask.GetSpacing()
    return Geometry(
        mask.GetSize(), spacing, {number: _extent(found, spacing) for number, found in sorted(planes.items())}
    )


def _extent(planes: Sequence[NDArray[np.bool_]], spacing: Triple) -> Triple:
    occupied = [np.flatnonzero(found) for found in planes]
    x, y, z = (float((where[-1] - where[0] + 1) * length) for where, length in zip(occupied, spacing, strict=True))
    return x, y, z


def make_plan(
    geometries: Sequence[Geometry],
    voxels: int,
    multiples_of: Callable[[Sequence[float]], Sequence[int]],
    coarse: bool,
    spacing: Triple | None = None,
    size: tuple[int, int, int] | None = None,
) -> Plan:
    """Plans the grid of a data set.

    Args:
        geometries: of its cases, at least one.
        voxels: of a window, at most, if that leaves twice the multiple along each axis.
        multiples_of: gives, for a spacing, what the window's lengths are multiples of, x y z.
        coarse: whether the spacing may be coarser than the files', where structures stay large enough.
        spacing: mm, x y z, if it is given.
        size: of the windows, voxels, x y z, if it is given.
    """
    extent = np.median([np.multiply(case.size, case.spacing) for case in geometries], axis=0)
    across = _smallest_structure(geometries)
    if spacing is None:
        planned = _median_spacing(geometries)
        if coarse and across:
            finest = np.maximum(planned, across / ACROSS)
            fitting = _fitting_spacing(planned, extent, voxels, np.array(multiples_of(planned.tolist())))
            planned = np.maximum(planned, min(max(across / ACROSS, fitting), COARSER * across / ACROSS))
            planned = planned if fitting <= COARSER * across / ACROSS else finest
        spacing = _triple(np.round(planned, DECIMALS))
    window = size or _window(np.ceil(np.round(extent / spacing, DECIMALS)), voxels, np.array(multiples_of(spacing)))
    return Plan(spacing, window, _triple(extent), across)


def _median_spacing(geometries: Sequence[Geometry]) -> NDArray[np.float64]:
    sizes, spacings = (np.array([getattr(case, name) for case in geometries], float) for name in ("size", "spacing"))
    spacing, size = np.median(spacings, axis=0), np.median(sizes, axis=0)
    worst = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != worst]
    far_apart = spacing[worst] > ANISOTROPY * spacing[others].max()
    if far_apart and size[worst] * ANISOTROPY < size[others].min():
        spacing[worst] = max(np.percentile(spacings[:, worst], FINE_PERCENTILE), spacing[others].max())
    return spacing


def _smallest_structure(geometries: Sequence[Geometry]) -> float:
    """The smallest, over the labels, of the median geometric mean of a structure's extents, mm; 0 without any."""
    of_labels: dict[int, list[float]] = {}
    for case in geometries:
        for label, lengths in case.structures.items():
            of_labels.setdefault(label, []).append(math.prod(lengths) ** (1 / 3))
    return min((float(np.median(means)) for means in of_labels.values()), default=0.0)


def _fitting_spacing(
    spacing: NDArray[np.float64], extent: NDArray[np.float64], voxels: int, multiples: NDArray[np.int64]
) -> float:
    """The least spacing, mm, with which a window holds a volume of an extent, if no axis gets finer than `spacing`."""
    low, high = float(spacing.min()), float(extent.max())
    if _voxels_of(spacing, extent, multiples) <= voxels:
        return low
    for _ in range(30):
        middle = (low + high) / 2
        fits = _voxels_of(np.maximum(spacing, middle), extent, multiples) <= voxels
        low, high = (low, middle) if fits else (middle, high)
    # rounded up, so that it still fits
    return math.ceil(high * 10**DECIMALS) / 10**DECIMALS


def _voxels_of(spacing: NDArray[np.float64], extent: NDArray[np.float64], multiples: NDArray[np.int64]) -> float:
    return float(np.prod(_rounded_up(np.ceil(np.round(extent / spacing, DECIMALS)), multiples)))


def _rounded_up(whole: NDArray[np.float64], multiples: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.maximum(np.ceil(whole / multiples), 2) * multiples


def _window(whole: NDArray[np.float64], voxels: int, multiples: NDArray[np.int64]) -> tuple[int, int, int]:
    """The window for volumes of so many voxels."""
    # no longer than a window of any shape can be, so that it is soon short enough
    longest = voxels * 2 * multiples / np.prod(2 * multiples)
    window = np.minimum(_rounded_up(whole, multiples), _rounded_up(longest, multiples))
    while window.prod() > voxels and (window > 2 * multiples).any():
        shares = np.where(window > 2 * multiples, window / whole, 0)
        axis = int(shares.argmax())
        window[axis] -= multiples[axis]
    x, y, z = window.astype(int).tolist()
    return x, y, z


def _triple(values: NDArray[np.float64]) -> Triple:
    x, y, z = values.tolist()
    return x, y, z
