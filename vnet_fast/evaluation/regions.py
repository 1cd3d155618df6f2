"""Base and apex of the prostate, as PROMISE12 measures them beside the whole."""

import numpy as np

REGIONS = ("whole", "base", "apex")


def regions(reference, direction):
    """Where the regions of a reference lie: the whole volume, the base (the cranial third of the slices
    that the reference touches) and the apex (the caudal third).

    Slices are counted along the axis of the array that points most along the patient's superior axis. Of n
    slices, one belongs to a third if its centre lies in it: slice i from that end if i + 0.5 < n / 3. So base
    and apex have n / 3 slices, rounded, and of a single slice both are empty.

    Masks are cropped to a region before they are measured. What a prediction has beyond the reference's first
    and last slice counts for the whole only, and where a region ends, so does the mask: its cut is boundary.

    Args:
        reference: (z, y, x) bool array.
        direction: 9 numbers, row by row as SimpleITK's `GetDirection` returns them: the columns are the
            directions of x, y, z in ITK's sense of the axes, left, posterior, superior.

    Returns:
        dict from each of `REGIONS` to a tuple of slices that crops a (z, y, x) array. Base and apex of an empty
        reference are empty.

    Raises:
        ValueError: if there are not nine numbers.

    Source:
        Litjens et al., Medical Image Analysis 18, 2014; rounding is ours.
    """
    superior = _superior(direction)
    axis = int(np.abs(superior).argmax())
    touched = np.flatnonzero(reference.any(axis=tuple({0, 1, 2} - {axis})))
    first, end = (int(touched[0]), int(touched[-1]) + 1) if touched.size else (0, 0)
    # n / 3 to the nearest whole number; it never lies in the middle of two
    third = (end - first + 1) // 3
    low, high = slice(first, first + third), slice(end - third, end)
    base, apex = (high, low) if superior[axis] > 0 else (low, high)
    whole = (slice(None),) * 3
    return {"whole": whole, "base": _along(axis, base), "apex": _along(axis, apex)}


def _superior(direction):
    """How much each axis of a (z, y, x) array points to the patient's head."""
    if len(direction) != 9:
        raise ValueError(f"direction must be 9 numbers, row by row; got {len(direction)}")
    return np.array(direction, dtype=np.float64).reshape(3, 3)[2, ::-1]


def _along(axis, part):
    return tuple(part if each == axis else slice(None) for each in range(3))
