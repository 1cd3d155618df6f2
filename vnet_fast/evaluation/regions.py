"""The regions of the prostate that PROMISE12 measures separately: base and apex."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REGIONS = ("whole", "base", "apex")
Box = tuple[slice, slice, slice]


def regions(reference: NDArray[np.bool_], direction: Sequence[float]) -> dict[str, Box]:
    """Finds the regions of a reference.

    The region `whole` is the whole volume. Of the slices that contain the reference, `base` is the cranial third
    and `apex` is the caudal third. Slices are counted along the axis of the array that is closest to the patient's
    superior axis. A slice belongs to a third if its centre does: slice i from that end, of n slices, belongs to it
    if i + 0.5 < n / 3. Base and apex thus have n / 3 slices, rounded; for a single slice both are empty.

    Masks are cropped to a region before they are measured. A prediction beyond the reference's first and last slice
    therefore counts in `whole` only, and the plane where a mask is cut counts as its boundary.

    Args:
        reference: (z, y, x) bool array.
        direction: the 9 numbers that SimpleITK's `GetDirection` returns, row by row. The columns are the directions
            of x, y and z in ITK's axes: left, posterior, superior.

    Returns:
        dict from each of `REGIONS` to slices that crop a (z, y, x) array. Base and apex of an empty reference are
        empty.

    Raises:
        ValueError: if `direction` has not 9 numbers.

    Source:
        Litjens et al., Medical Image Analysis 18, 2014. The paper does not say how thirds are rounded.
    """
    superior = _superior_components(direction)
    axis = int(np.abs(superior).argmax())
    occupied = np.flatnonzero(reference.any(axis=tuple({0, 1, 2} - {axis})))
    first, end = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, 0)
    # n / 3 to the nearest whole number, which is always unique
    third = (end - first + 1) // 3
    low, high = slice(first, first + third), slice(end - third, end)
    base, apex = (high, low) if superior[axis] > 0 else (low, high)
    whole = slice(None)
    return {"whole": (whole, whole, whole), "base": _crop_along(axis, base), "apex": _crop_along(axis, apex)}


def _superior_components(direction: Sequence[float]) -> NDArray[np.float64]:
    """The component along the patient's superior axis of each axis of a (z, y, x) array."""
    if len(direction) != 9:
        raise ValueError(f"direction must be 9 numbers, row by row; got {len(direction)}")
    return np.array(direction, dtype=np.float64).reshape(3, 3)[2, ::-1]


def _crop_along(axis: int, extent: slice) -> Box:
    """Slices that crop one axis and keep the others whole."""
    z, y, x = (extent if index == axis else slice(None) for index in range(3))
    return z, y, x
