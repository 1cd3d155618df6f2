"""Random deformation and histogram matching: parameters drawn once on the host, applied anywhere.

As the paper: the volume takes the intensity distribution of another training volume, and with
probability 1/2 is deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points)
whose displacements are normal with a standard deviation of 15 voxels in x and y and none in z.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MESH = 2
SPLINE_ORDER = 3
CONTROL_POINTS = MESH + SPLINE_ORDER
PROBABILITY = 0.5
# the paper's 15 voxels of 128: it stays the same in mm when the spacing grows and the size shrinks
SIGMA_SHARE = 15 / 128
# ITK's spline domain reaches this far beyond the centres of the first and the last voxel
DOMAIN_MARGIN = 0.625


@dataclass(frozen=True)
class Draw:
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


def draw(seed, iteration, batch_size, num_cases, size, augmented=True):
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
    return Draw(cases, intensities_of, deformed, control_points)


@dataclass(frozen=True)
class Draws:
    """The choices of a run: called with an iteration, from 0, it returns its `Draw`.

    Args:
        seed, num_cases, size, augmented: see `draw`.
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
        return Draw(drawn.cases[mine], drawn.intensities_of[mine], drawn.deformed[mine], drawn.control_points[mine])

    def of_all(self, iteration):
        """The choices of all parts together."""
        return draw(
            self.seed, iteration, self.batch_size * self.parts, self.num_cases, self.size, augmented=self.augmented
        )


def _generator(seed, stream, index):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, stream, index))))


def match_intensities(ranks, tables):
    """Volumes with other volumes' distributions of intensity.

    Args:
        ranks: (N, D, H, W) integers from 0 to 65535.
        tables: (N, 65536) float32, each the table of the volume to match, see `intensity.to_ranks`.

    Returns:
        (N, D, H, W) float32.
    """
    return torch.stack([table[rank] for rank, table in zip(ranks.long(), tables, strict=True)])


def spline_weights(length, device=None):
    """How much each control point of an axis counts at each voxel of it.

    Args:
        length: voxels.

    Returns:
        (length, 5) float32; each row sums to 1.

    Source:
        Uniform cubic B-splines on the domain of ITK's BSplineTransformInitializer.
    """
    domain = length - 1 + 2 * DOMAIN_MARGIN
    position = (torch.arange(length, dtype=torch.float64, device=device) + DOMAIN_MARGIN) / domain * MESH
    cell = position.floor().clamp(max=MESH - 1)
    u = position - cell
    basis = torch.stack(
        [(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3], dim=1
    )  # fmt: skip
    weights = torch.zeros(length, CONTROL_POINTS, dtype=torch.float64, device=device)
    points = cell.long()[:, None] + torch.arange(SPLINE_ORDER + 1, device=device)
    return weights.scatter_(1, points, basis / 6).float()


def displacement(control_points, size):
    """The displacement of every voxel.

    Args:
        control_points: (N, 2, 5, 5, 5), see `Draw`.
        size: voxels, (D, H, W).

    Returns:
        (N, 2, D, H, W), x and y in voxels: where the deformed volume takes each voxel from.
    """
    for axis, length in zip((2, 3, 4), size, strict=True):
        weights = spline_weights(length, control_points.device)
        control_points = torch.tensordot(control_points.movedim(axis, -1), weights.T, 1).movedim(-1, axis)
    return control_points


def deform(image, mask, control_points, num_classes):
    """Deformed volumes and masks.

    Sampled linearly, beyond the border from the border; of a mask each label is, and the largest
    wins (background where nothing else is larger).

    Args:
        image: (N, D, H, W) floating point.
        mask: (N, D, H, W) uint8 labels below `num_classes`.
        control_points: (N, 2, 5, 5, 5), see `Draw`.
        num_classes: background included.

    Returns:
        (image, mask), as given.
    """
    n, d, h, w = image.shape
    shift = displacement(control_points, (d, h, w))
    # there is no displacement along z, so that each slice is sampled by itself
    x = torch.arange(w, device=image.device) + shift[:, 0]
    y = torch.arange(h, device=image.device)[:, None] + shift[:, 1]
    place = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1).reshape(n * d, h, w, 2)
    labels = torch.stack([(mask == k).to(image.dtype) for k in range(1, num_classes)], dim=2)
    volumes = torch.cat([image[:, :, None], labels], dim=2).reshape(n * d, num_classes, h, w)
    sampled = F.grid_sample(volumes, place.to(image.dtype), padding_mode="border", align_corners=True)
    sampled = sampled.reshape(n, d, num_classes, h, w)
    share, label = sampled[:, :, 1:].max(dim=2)
    background = 1 - sampled[:, :, 1:].sum(dim=2)
    return sampled[:, :, 0], torch.where(share > background, label + 1, 0).to(mask.dtype)


def augment(ranks, tables, masks, control_points, deformed, num_classes):
    """A training batch from stored volumes.

    Args:
        ranks: (N, D, H, W) integers from 0 to 65535.
        tables: (N, 65536) float32, of the volumes whose intensities are taken.
        masks: (N, D, H, W) uint8.
        control_points: (N, 2, 5, 5, 5), see `Draw`.
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
