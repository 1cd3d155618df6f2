"""The random parameters of every batch: its cases and their augmentation, drawn on the host and applied anywhere.

As in the paper, a volume takes the intensity distribution of another training volume. With probability 1/2 it is
deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points). Their displacements are normal, with a
standard deviation of 15 voxels in x and y and none in z.
"""

from dataclasses import dataclass

import numpy as np

from vnet_fast.ops.augment import CONTROL_POINTS

# of a deformation
PROBABILITY = 0.5
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
    """

    cases: np.ndarray
    intensities_of: np.ndarray
    deformed: np.ndarray
    control_points: np.ndarray


def sample_batch(
    seed: int, iteration: int, batch_size: int, num_cases: int, shape: tuple[int, int, int], augmented: bool = True
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
    """
    positions = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    orders = {
        epoch: _generator(seed, 0, epoch).permutation(num_cases) for epoch in set((positions // num_cases).tolist())
    }
    cases = np.array([orders[position // num_cases][position % num_cases] for position in positions])
    generator = _generator(seed, 1, iteration)
    intensities_of = generator.integers(num_cases, size=batch_size)
    deformed = generator.random(batch_size) < PROBABILITY
    sigma = SIGMA_SHARE * np.array([shape[2], shape[1]], dtype=np.float32)
    control_points = generator.standard_normal((batch_size, 2, *[CONTROL_POINTS] * 3), dtype=np.float32)
    if not augmented:
        intensities_of, deformed = cases, np.zeros(batch_size, dtype=bool)
    control_points *= sigma[:, None, None, None] * deformed[:, None, None, None, None]
    return BatchParameters(cases, intensities_of, deformed, control_points)


@dataclass(frozen=True)
class BatchSampler:
    """The parameters of a run's batches. Called with an iteration, counted from 0, it returns BatchParameters.

    Args:
        seed, num_cases, shape, augmented: see `sample_batch`.
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

    def __call__(self, iteration: int) -> BatchParameters:
        """The parameters of this process's part of a batch."""
        batch = self.whole_batch(iteration)
        mine = slice(self.part * self.batch_size, (self.part + 1) * self.batch_size)
        return BatchParameters(
            batch.cases[mine], batch.intensities_of[mine], batch.deformed[mine], batch.control_points[mine]
        )

    def whole_batch(self, iteration: int) -> BatchParameters:
        """The parameters of all parts of a batch."""
        return sample_batch(
            self.seed, iteration, self.batch_size * self.parts, self.num_cases, self.shape, self.augmented
        )


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))
