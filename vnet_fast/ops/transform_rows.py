"""What a transform does with each volume: a row of FIELDS float32 numbers.

| columns | content |
| --- | --- |
| 0 to 11 | M, 3 x 4: x, y and z of the place that an output voxel is taken from, in voxels, of its (x, y, z, 1) |
| CELLS, and two more | cells of the lattice along x, y and z that the image is read from; voxels less one reads all |
| MOVED | 0 if M is the identity and all voxels are read, else 1 |
| NOISE | standard deviation of the noise |
| SEED, and one more | the lower and the upper 16 bits of the noise's seed, which float32 holds exactly |
| BRIGHTNESS, CONTRAST, GAMMA, INVERTED | see `ops.intensities.change_intensities`; 1, 1, 1 and 0 change nothing |
"""

import numpy as np

CELLS, MOVED, NOISE, SEED, BRIGHTNESS, CONTRAST, GAMMA, INVERTED = 12, 15, 16, 17, 19, 20, 21, 22
FIELDS = 23


def identity_row(shape: tuple[int, int, int]) -> np.ndarray:
    """The row of a volume of `shape` (z, y, x) that stays as it is."""
    row = np.zeros(FIELDS, np.float32)
    row[:12] = np.eye(3, 4).ravel()
    row[CELLS : CELLS + 3] = np.array(shape[::-1]) - 1
    row[[BRIGHTNESS, CONTRAST, GAMMA]] = 1
    return row


def trial_rows(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of a volume of `shape`: one that moves it and changes everything, and one of intensities alone."""
    intensities = identity_row(shape)
    intensities[NOISE:] = 0.3, 123, 456, 1.2, 1.2, 0.7, 1
    moved = intensities.copy()
    moved[:12] = 0.9, -0.3, 0.1, 2, 0.3, 0.9, -0.1, -1, 0.1, -0.1, 1.1, 0.5
    moved[CELLS : CELLS + 3] //= 2
    moved[MOVED] = 1
    return moved, intensities
