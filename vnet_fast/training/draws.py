"""The random parameters of every batch: its cases and their augmentation, drawn on the host and applied anywhere.

As in the paper, a volume takes the intensity distribution of another training volume. With probability 1/2 it is
deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points). Their displacements are normal, with a
standard deviation of 15 voxels in x and y and none in z. What the paper does not have is drawn from another stream of
random numbers, so that it does not change these draws (`transforms.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vnet_fast.ops.augment import CONTROL_POINTS
from vnet_fast.ops.transform_rows import MOVED, identity_row
from vnet_fast.run.augmentation import Augmentation
from vnet_fast.training.patches import Middles
from vnet_fast.training.transforms import draw_transforms

PAPER = Augmentation()
# the paper's 15 voxels of 128, as a share, so that it stays the same in mm for another spacing and size
SIGMA_SHARE = 15 / 128


@dataclass(frozen=True)
class BatchParameters:
    """The random parameters of one iteration, for a batch of N volumes.

    Args:
        cases: (N,) int64, indices of the training cases.
        intensities_of: (N,) int64, indices of the cases whose intensity distributions they take.
        deformed: (N,) bool.
        control_points: (N, 2, 5, 5, 5) float32, the displacement in x and in y of the control point at (z, y, x),
            in voxels; zero where not deformed.
        transforms: (N C, FIELDS) float32, a row for each channel, see `ops.transform_rows`; None if the augmentation
            has none, and volumes have one channel and are not larger than the network's.
    """

    cases: np.ndarray
    intensities_of: np.ndarray
    deformed: np.ndarray
    control_points: np.ndarray
    transforms: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that there are, in this order."""
        paper = self.cases, self.intensities_of, self.deformed, self.control_points
        return paper if self.transforms is None else (*paper, self.transforms)


def sample_batch(
    seed: int,
    iteration: int,
    batch_size: int,
    num_cases: int,
    shape: tuple[int, int, int],
    augmented: bool = True,
    augmentation: Augmentation = PAPER,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    middles: Middles | None = None,
    channels: int = 1,
) -> BatchParameters:
    """The parameters of an iteration, which depend on (seed, iteration) alone.

    Every case is used once before any is used again, in a new order each time.

    Args:
        seed, iteration, batch_size: not negative; from 0; N.
        num_cases: how many training cases there are.
        shape, spacing: of a volume, voxels, (z, y, x); mm, x y z.
        augmented: whether intensities and shapes change; the cases are the same either way.
        augmentation: how they change.
        middles: None, or of the whole volumes that patches of `shape` are read from; needed for several channels.
        channels: C of a volume. They move together, and each has intensities of its own.
    """
    positions = iteration * batch_size + np.arange(batch_size)
    cases = _ordered_cases(seed, positions, num_cases)
    generator = _generator(seed, 1, iteration)
    intensities_of = generator.integers(num_cases, size=batch_size)
    deformed, points = _draw_deformations(generator, batch_size, augmentation.deformation if augmented else 0, shape)
    other = _generator(seed, 2, iteration)
    matched = other.random(batch_size) < augmentation.matching
    intensities_of = np.where(matched & augmented, intensities_of, cases)
    stored = None if middles is None else middles.shapes[cases]
    rows, changed = None, augmented and augmentation.transforms
    if changed:
        rows = draw_transforms(other, batch_size, augmentation, shape, spacing, stored)
    if middles is not None:
        rows = _placed(rows, cases, middles, _generator(seed, 3, iteration), positions, shape)
        rows = np.repeat(rows, channels, axis=0)
        if changed and channels > 1:
            drawn = draw_transforms(_generator(seed, 4, iteration), len(rows), augmentation, shape, spacing)
            others = np.arange(len(rows)) % channels > 0
            rows[others, MOVED + 1 :] = drawn[others, MOVED + 1 :]
    return BatchParameters(cases, intensities_of, deformed, points, rows)


def _ordered_cases(seed: int, positions: NDArray[np.int64], num_cases: int) -> NDArray[np.int64]:
    """The cases at positions of an endless list that has all of them once in each of its parts."""
    orders = {
        epoch: _generator(seed, 0, epoch).permutation(num_cases) for epoch in set((positions // num_cases).tolist())
    }
    return np.array([orders[position // num_cases][position % num_cases] for position in positions])


def _draw_deformations(
    generator: np.random.Generator, batch_size: int, share: float, shape: tuple[int, int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which volumes are deformed, a share of them, and the displacements of their control points."""
    deformed = generator.random(batch_size) < share
    points = generator.standard_normal((batch_size, 2, *[CONTROL_POINTS] * 3), dtype=np.float32)
    sigma = SIGMA_SHARE * np.array([shape[2], shape[1]], dtype=np.float32)
    points *= sigma[:, None, None, None] * deformed[:, None, None, None, None]
    return deformed, points


def _placed(
    rows: NDArray[np.float32] | None,
    cases: NDArray[np.int64],
    middles: Middles,
    generator: np.random.Generator,
    positions: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.float32]:
    """The rows of a batch's transforms, which may be none, that read patches at random places of whole volumes."""
    if rows is None:
        rows = np.stack([identity_row((d, h, w)) for d, h, w in middles.shapes[cases].tolist()])
    # the last column of M, of x, y and z
    rows[:, 3:12:4] += middles.origins(generator, cases, positions, shape)[:, ::-1]
    rows[:, MOVED] = 1
    return rows


@dataclass(frozen=True)
class BatchSampler:
    """The parameters of a run's batches. Called with an iteration, counted from 0, it returns BatchParameters.

    Args:
        seed, num_cases, shape, augmented, augmentation, spacing, middles, channels: see `sample_batch`.
        ignores: whether masks have voxels that do not count.
        batch_size: volumes for this process.
        part, parts: which part of a batch this process has, of how many.
    """

    seed: int
    batch_size: int
    num_cases: int
    shape: tuple[int, int, int]
    augmented: bool = True
    part: int = 0
    parts: int = 1
    augmentation: Augmentation = PAPER
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    middles: Middles | None = None
    channels: int = 1
    ignores: bool = False

    @property
    def transforms(self) -> bool:
        """Whether the parameters have transforms."""
        return self.middles is not None or (self.augmented and self.augmentation.transforms)

    def __call__(self, iteration: int) -> BatchParameters:
        """The parameters of this process's part of a batch."""
        batch = self.whole_batch(iteration)
        # of several channels there are as many rows of transforms
        lengths = [len(array) // self.parts for array in batch.arrays]
        mine = [slice(self.part * length, (self.part + 1) * length) for length in lengths]
        return BatchParameters(*(array[part] for array, part in zip(batch.arrays, mine, strict=True)))

    def whole_batch(self, iteration: int) -> BatchParameters:
        """The parameters of all parts of a batch."""
        batch_size = self.batch_size * self.parts
        return sample_batch(
            self.seed,
            iteration,
            batch_size,
            self.num_cases,
            self.shape,
            self.augmented,
            self.augmentation,
            self.spacing,
            self.middles,
            self.channels,
        )


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))
