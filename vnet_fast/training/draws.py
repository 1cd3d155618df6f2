"""The random parameters of every batch: its cases and their augmentation, drawn on the host and applied anywhere.

As in the paper, a volume takes the intensity distribution of another training volume. With probability 1/2 it is
deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points). Their displacements are normal, with a
standard deviation of 15 voxels in x and y and none in z. What the paper does not have is drawn from another stream of
random numbers, so that it does not change these draws (`transforms.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        transforms: (N, FIELDS) float32, see `ops.transform_rows`; None if the augmentation has none, and volumes are
            not larger than the network's.
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
) -> BatchParameters:
    """The parameters of an iteration, which depend on (seed, iteration) alone.

    Every case is used once before any is used again, in a new order each time.

    Args:
        seed: not negative.
        iteration: from 0.
        batch_size: N.
        num_cases: how many training cases there are.
        shape: of a volume, voxels, (z, y, x).
        augmented: whether intensities and shapes change; the cases are the same either way.
        augmentation: how they change.
        spacing: of a volume, mm, x y z.
        middles: None, or of the whole volumes that patches of `shape` are read from.
    """
    positions = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    cases = _ordered_cases(seed, positions, num_cases)
    generator = _generator(seed, 1, iteration)
    intensities_of = generator.integers(num_cases, size=batch_size)
    deformed = generator.random(batch_size) < augmentation.deformation
    sigma = SIGMA_SHARE * np.array([shape[2], shape[1]], dtype=np.float32)
    control_points = generator.standard_normal((batch_size, 2, *[CONTROL_POINTS] * 3), dtype=np.float32)
    other = _generator(seed, 2, iteration)
    matched = other.random(batch_size) < augmentation.matching
    intensities_of = np.where(matched, intensities_of, cases)
    if not augmented:
        intensities_of, deformed = cases, np.zeros(batch_size, dtype=bool)
    control_points *= sigma[:, None, None, None] * deformed[:, None, None, None, None]
    batch = BatchParameters(cases, intensities_of, deformed, control_points)
    stored = None if middles is None else middles.shapes[cases]
    if augmented and augmentation.transforms:
        batch = replace(batch, transforms=draw_transforms(other, augmentation, batch_size, shape, spacing, stored))
    return batch if middles is None else _placed(batch, middles, _generator(seed, 3, iteration), positions, shape)


def _ordered_cases(seed: int, positions: NDArray[np.int64], num_cases: int) -> NDArray[np.int64]:
    """The cases at positions of an endless list that has all of them once in each of its parts."""
    orders = {
        epoch: _generator(seed, 0, epoch).permutation(num_cases) for epoch in set((positions // num_cases).tolist())
    }
    return np.array([orders[position // num_cases][position % num_cases] for position in positions])


def _placed(
    batch: BatchParameters,
    middles: Middles,
    generator: np.random.Generator,
    positions: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> BatchParameters:
    """A batch whose transforms, which may be none, read patches at random places of whole volumes."""
    rows = batch.transforms
    if rows is None:
        rows = np.stack([identity_row((d, h, w)) for d, h, w in middles.shapes[batch.cases].tolist()])
    # the last column of M, of x, y and z
    rows[:, 3:12:4] += middles.origins(generator, batch.cases, positions, shape)[:, ::-1]
    rows[:, MOVED] = 1
    return replace(batch, transforms=rows)


@dataclass(frozen=True)
class BatchSampler:
    """The parameters of a run's batches. Called with an iteration, counted from 0, it returns BatchParameters.

    Args:
        seed, num_cases, shape, augmented, augmentation, spacing, middles: see `sample_batch`.
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

    @property
    def transforms(self) -> bool:
        """Whether the parameters have transforms."""
        return self.middles is not None or (self.augmented and self.augmentation.transforms)

    def __call__(self, iteration: int) -> BatchParameters:
        """The parameters of this process's part of a batch."""
        batch = self.whole_batch(iteration)
        mine = slice(self.part * self.batch_size, (self.part + 1) * self.batch_size)
        return BatchParameters(*(array[mine] for array in batch.arrays))

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
        )


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))
