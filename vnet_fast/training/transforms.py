"""The random parameters of a batch's transforms, drawn on the host: rows of `ops.transform_rows`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vnet_fast.ops.transform_rows import (
    BRIGHTNESS,
    CELLS,
    CONTRAST,
    FIELDS,
    GAMMA,
    INVERTED,
    MOVED,
    NOISE,
    SEED,
    identity_row,
)
from vnet_fast.run.augmentation import AXES, NO_FLIP, Augmentation

# of the volumes whose intensities are raised to a power, as in nnU-Net
SHARE_INVERTED = 0.25
# What each volume draws, whatever is switched on, so that one transform does not change the draws of another: for each
# of these one number that decides whether it happens, and numbers for its values.
VALUES = {
    "rotation": 3, "scaling": 1, "flip": 3, "brightness": 1, "contrast": 1, "gamma": 2, "noise": 1, "low_resolution": 1,
    "seed": 2,
}  # fmt: skip
DRAWS = sum(1 + count for count in VALUES.values())


def draw_transforms(
    generator: np.random.Generator,
    batch_size: int,
    augmentation: Augmentation,
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    stored: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """The rows of a batch of N volumes.

    Args:
        generator: of random numbers, used for this batch alone.
        batch_size: N.
        augmentation: what may happen.
        shape: of a volume, voxels, (z, y, x).
        spacing: mm, x y z.
        stored: None, or (N, 3), the shapes of the stored volumes that patches of `shape` are read from; the rows are
            of patches that begin at the first voxel.

    Returns:
        (N, FIELDS) float32.
    """
    uniform = generator.random((batch_size, DRAWS))
    rows = np.empty((batch_size, FIELDS), np.float32)
    ends = np.cumsum([1 + count for count in VALUES.values()])[:-1]
    whole = [shape] * batch_size if stored is None else [(d, h, w) for d, h, w in stored.tolist()]
    for row, numbers, extent in zip(rows, uniform, whole, strict=True):
        drawn = dict(zip(VALUES, np.split(numbers, ends), strict=True))
        row[:] = identity_row(extent)
        _draw_place(row, drawn, augmentation, shape, spacing, extent)
        _draw_intensities(row, drawn, augmentation)
    return rows


def _draw_place(
    row: NDArray[np.float32],
    drawn: dict[str, NDArray[np.float64]],
    augmentation: Augmentation,
    shape: tuple[int, int, int],
    spacing: Sequence[float],
    stored: tuple[int, int, int],
) -> None:
    angles, scale, mirrored = np.zeros(3), 1.0, np.zeros(3, dtype=bool)
    decides, *numbers = drawn["rotation"]
    chance, degrees, tilt = augmentation.rotation
    if decides < chance:
        angles = np.radians([tilt, tilt, degrees]) * (2 * np.array(numbers) - 1)
    decides, number = drawn["scaling"]
    chance, low, high = augmentation.scaling
    if decides < chance:
        scale = _factor(number, low, high)
    for axis in augmentation.flip if augmentation.flip != NO_FLIP else "":
        mirrored[AXES.index(axis)] = drawn["flip"][1 + AXES.index(axis)] < 0.5
    decides, number = drawn["low_resolution"]
    chance, largest = augmentation.low_resolution
    if decides < chance:
        row[CELLS : CELLS + 3] = lattice_cells(1 + number * (largest - 1), stored, spacing)
    row[:12] = affine_map(angles, scale, mirrored, shape, spacing).ravel()
    row[MOVED] = not np.array_equal(row[:MOVED], identity_row(stored)[:MOVED])


def _draw_intensities(
    row: NDArray[np.float32], drawn: dict[str, NDArray[np.float64]], augmentation: Augmentation
) -> None:
    for name, column in (("brightness", BRIGHTNESS), ("contrast", CONTRAST), ("gamma", GAMMA)):
        chance, low, high = getattr(augmentation, name)
        if drawn[name][0] < chance:
            row[column] = _factor(drawn[name][1], low, high)
    row[INVERTED] = drawn["gamma"][2] < SHARE_INVERTED
    chance, sigma = augmentation.noise
    row[NOISE] = drawn["noise"][1] * sigma if drawn["noise"][0] < chance else 0
    row[SEED : SEED + 2] = np.floor(drawn["seed"][1:] * 2**16)


def _factor(number: float, low: float, high: float) -> float:
    """A factor between `low` and `high`, even on a logarithmic scale."""
    return float(low * (high / low) ** number)


def affine_map(
    angles: NDArray[np.float64],
    scale: float,
    mirrored: NDArray[np.bool_],
    shape: tuple[int, int, int],
    spacing: Sequence[float],
) -> NDArray[np.float64]:
    """The place in a volume that each output voxel is taken from.

    The volume is mirrored, enlarged and rotated about its centre, in mm, so that a rotation is rigid whatever the
    spacing: S (q - c) = R F S (o - c) / scale, with the spacing S, the mirrors F and the rotation R.

    Args:
        angles: radians, about x, y and z; the output is turned about x first, z last, seen from the volume.
        scale: above 1 the content becomes larger.
        mirrored: whether x, y and z are mirrored.
        shape: of the volume, voxels, (z, y, x).
        spacing: mm, x y z.

    Returns:
        (3, 4): x, y, z in voxels of (x, y, z, 1).
    """
    cosine, sine = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cosine[0], -sine[0]], [0, sine[0], cosine[0]]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
    rotated = about_z @ about_y @ about_x @ np.diag(np.where(mirrored, -1.0, 1.0)) / scale
    # a spacing over itself is 1, so that what is not rotated stays exact
    matrix = rotated * (np.array(spacing)[None, :] / np.array(spacing)[:, None])
    centre = (np.array(shape[::-1]) - 1) / 2
    return np.column_stack([matrix, centre - matrix @ centre])


def lattice_cells(factor: float, shape: tuple[int, int, int], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Cells along x, y and z of a lattice whose nodes are `factor` times the finest spacing apart.

    An axis whose voxels are farther apart already keeps all of them.
    """
    voxels = np.array(shape[::-1]) - 1
    cells = np.rint(voxels * np.array(spacing) / (factor * min(spacing)))
    return np.minimum(np.maximum(cells, 1), voxels)
