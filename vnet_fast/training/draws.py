"""Random deformation and histogram matching: parameters drawn once on the host, applied anywhere.

As the paper: the volume takes the intensity distribution of another training volume, and with
probability 1/2 is deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points)
whose displacements are normal with a standard deviation of 15 voxels in x and y and none in z.
"""

from dataclasses import dataclass

import numpy as np

from vnet_fast.ops.augment import CONTROL_POINTS, deform, match_intensities

PROBABILITY = 0.5
# the paper's 15 voxels of 128: it stays the same in mm when the spacing grows and the size shrinks
SIGMA_SHARE = 15 / 128


@dataclass(frozen=True)
class BatchParameters:
    """The random choices of one iteration, for a batch of N volumes.

    Args:
        cases: (N,) int64, which training cases.
        intensities_of: (N,) int64, the cases whose intensity distributions they take.
        deformed: (N,) bool.
        control_points: (N, 2, 5, 5, 5) float32, displacement in x and in y of each control point in
            voxels, at (z, y, x); zero where not deformed.
    """

    cases: np.ndarray
    intensities_of: np.ndarray
    deformed: np.ndarray
    control_points: np.ndarray


def sample_batch(seed, iteration, batch_size, num_cases, size, augmented=True):
    """The choices of an iteration, by (seed, iteration) alone.

    Every case is taken once before any is taken again, in an order that is new each time.

    Args:
        seed: not negative.
        iteration: from 0.
        batch_size: N.
        num_cases: how many training cases.
        size: voxels, (z, y, x).
        augmented: whether intensities and shapes change; the cases are the same either way.

    Returns:
        Draw.
    """
    position = np.arange(iteration * batch_size, (iteration + 1) * batch_size)
    epochs = {epoch: _generator(seed, 0, epoch).permutation(num_cases) for epoch in set(position // num_cases)}
    cases = np.array([epochs[p // num_cases][p % num_cases] for p in position])
    generator = _generator(seed, 1, iteration)
    intensities_of = generator.integers(num_cases, size=batch_size)
    deformed = generator.random(batch_size) < PROBABILITY
    sigma = SIGMA_SHARE * np.array([size[2], size[1]], dtype=np.float32)
    control_points = generator.standard_normal((batch_size, 2, *[CONTROL_POINTS] * 3), dtype=np.float32)
    if not augmented:
        intensities_of, deformed = cases, np.zeros(batch_size, dtype=bool)
    control_points *= sigma[:, None, None, None] * deformed[:, None, None, None, None]
    return BatchParameters(cases, intensities_of, deformed, control_points)


@dataclass(frozen=True)
class BatchSampler:
    """The choices of a run: called with an iteration, from 0, it returns its `training.draws.BatchParameters`.

    Args:
        seed, num_cases, size, augmented: see `sample_batch`.
        batch_size: volumes for this process.
        part, parts: of several processes that share a batch, which one this is.
    """

    seed: int
    batch_size: int
    num_cases: int
    size: tuple[int, int, int]
    augmented: bool = True
    part: int = 0
    parts: int = 1

    def __call__(self, iteration):
        drawn = self.of_all(iteration)
        mine = slice(self.part * self.batch_size, (self.part + 1) * self.batch_size)
        return BatchParameters(
            drawn.cases[mine], drawn.intensities_of[mine], drawn.deformed[mine], drawn.control_points[mine]
        )

    def of_all(self, iteration):
        """The choices of all parts together."""
        return sample_batch(
            self.seed, iteration, self.batch_size * self.parts, self.num_cases, self.size, augmented=self.augmented
        )


def _generator(seed, stream, index):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))


def augment(ranks, tables, masks, control_points, deformed, num_classes):
    """A training batch from stored volumes.

    Args:
        ranks: (N, D, H, W) integers from 0 to 65535.
        tables: (N, 65536) float32, of the volumes whose intensities are taken.
        masks: (N, D, H, W) uint8.
        control_points: (N, 2, 5, 5, 5), see `training.draws.BatchParameters`.
        deformed: (N,) bool on the host.
        num_classes: background included.

    Returns:
        image (N, 1, D, H, W) float32 and mask (N, 1, D, H, W) uint8.
    """
    image = match_intensities(ranks, tables)
    chosen = np.flatnonzero(deformed).tolist()
    if chosen:
        image, mask = image.clone(), masks.clone()
        image[chosen], mask[chosen] = deform(image[chosen], masks[chosen], control_points[chosen], num_classes)
    else:
        mask = masks
    return image[:, None], mask[:, None]
