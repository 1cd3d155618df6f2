"""Normalises the intensities of a volume, and stores them as ranks with a table of values."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
# of uint16; rank 0 is the darkest value, also outside of the image
RANK_LEVELS = 1 << 16


def normalise(values: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float32]:
    """Normalises to zero mean and unit variance over the foreground, clipped at percentiles of the foreground.

    The foreground are all voxels brighter than the darkest value. This excludes the constant surround that scanners
    and skull stripping produce.

    Args:
        values: array of any shape, NaN outside of the image.
        reference: the part of the image from which percentiles, mean and variance are computed, NaN outside of the
            image; None for `values`.

    Returns:
        float32 array of the shape of `values`; the outside has the darkest value.

    Raises:
        ValueError: if all voxels of the reference have the same value, or are outside of the image.
    """
    values = np.asarray(values, dtype=np.float32)
    reference = values if reference is None else np.asarray(reference, dtype=np.float32)
    inside = reference[~np.isnan(reference)]
    if inside.size == 0:
        raise ValueError("has no voxels")
    if inside.min() == inside.max():
        raise ValueError("all voxels have the same value")
    foreground = inside[inside > inside.min()]
    low, high = np.percentile(foreground, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if low == high:
        # the foreground has a single value, so the surround must count too
        foreground, low, high = inside, inside.min(), inside.max()
    clipped_foreground = np.clip(foreground, low, high).astype(np.float64)
    clipped = np.clip(np.nan_to_num(values, nan=low), low, high)
    return ((clipped - clipped_foreground.mean()) / clipped_foreground.std()).astype(np.float32)


def to_ranks(values: np.ndarray) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Computes the rank of each voxel among those brighter than the darkest value, and the value of each rank.

    Ranks looked up in another volume's table give the volume with the histogram of the other.

    Args:
        values: finite array of any shape.

    Returns:
        ranks: uint16 of the same shape; 0 for the darkest value; equal values share the rank of the middle of
            their group.
        table: float32 (65536,), monotonically increasing, the value of each rank.
    """
    darkest = values.min()
    bright = values > darkest
    table = np.full(RANK_LEVELS, darkest, dtype=np.float32)
    ranks = np.zeros(values.shape, dtype=np.uint16)
    if not bright.any():
        return ranks, table
    levels, group, count = np.unique(values[bright], return_inverse=True, return_counts=True)
    share = (np.cumsum(count) - count / 2) / count.sum()
    ranks[bright] = (1 + np.rint(share * (RANK_LEVELS - 2))).astype(np.uint16)[group.ravel()]
    table[1:] = np.interp(np.arange(RANK_LEVELS - 1) / (RANK_LEVELS - 2), share, levels)
    return ranks, table


def from_ranks(ranks: NDArray[np.uint16], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the values of ranks, float32 of their shape."""
    return table[ranks]
