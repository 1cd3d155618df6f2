"""Intensities of a volume: normalised, and as ranks with a table of their distribution."""

import numpy as np

LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
# uint16: rank 0 is the darkest level, which the outside of the image has too
RANK_LEVELS = 1 << 16


def normalise(values, reference=None):
    """Zero mean and unit variance over the foreground, clipped at its percentiles.

    The foreground are the voxels brighter than the darkest one, so that a constant surround, as
    scanners and skull stripping leave it, does not count.

    Args:
        values: array of any shape, NaN outside of the image.
        reference: the part of the image that percentiles, mean and variance are taken from, NaN
            outside of the image; None for `values`.

    Returns:
        float32 array of the shape of `values`; the outside has the darkest value.

    Raises:
        ValueError: if all voxels, of the reference if that is given, have the same value.
    """
    values = np.asarray(values, dtype=np.float32)
    reference = values if reference is None else np.asarray(reference, dtype=np.float32)
    inside = reference[~np.isnan(reference)]
    if inside.size == 0 or inside.min() == inside.max():
        raise ValueError("all voxels have the same value")
    foreground = inside[inside > inside.min()]
    low, high = np.percentile(foreground, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if low == high:
        # one bright value: then the surround is all that it stands out from
        foreground, low, high = inside, inside.min(), inside.max()
    foreground = np.clip(foreground, low, high).astype(np.float64)
    clipped = np.clip(np.nan_to_num(values, nan=low), low, high)
    return ((clipped - foreground.mean()) / foreground.std()).astype(np.float32)


def to_ranks(values):
    """The rank of each voxel among those brighter than the darkest, and the table that turns ranks
    back to values. Looked up in another volume's table, ranks give the volume with the other's
    histogram.

    Args:
        values: finite array of any shape.

    Returns:
        ranks: uint16 of the same shape; 0 for the darkest value; equal values have the rank of the
            middle of their group.
        table: float32 (65536,), not decreasing.
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


def from_ranks(ranks, table):
    """The values of ranks: float32 of their shape."""
    return table[ranks]
