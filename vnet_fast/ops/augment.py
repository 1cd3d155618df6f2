"""Augmentation as one operation: histogram matching and B-spline deformation.

As in the paper, a volume takes the intensity distribution of another training volume (histogram matching, by ranks
and tables), and some volumes are deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops import trials
from vnet_fast.ops.dispatch import kernels_for, load_kernels
from vnet_fast.ops.operator import operator

MESH = 2
SPLINE_ORDER = 3
CONTROL_POINTS = MESH + SPLINE_ORDER
# the domain of ITK's splines reaches this far beyond the centres of the first and the last voxel
DOMAIN_MARGIN = 0.625


def augment(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A training batch of N volumes from M stored ones, deformed and with other intensities.

    The kernel reads nothing on the host, so that a CUDA graph can hold it. For a volume that is not deformed it only
    looks up intensities.

    Args:
        ranks: (M, D, H, W) int16 with the bits of uint16, see `data.intensity.to_ranks`.
        tables: (M', 65536) float32, the intensity of each rank in M' distributions.
        masks: (M, D, H, W) uint8 labels below `num_classes`.
        cases: (N,) int64, indices of volumes and masks.
        intensities_of: (N,) int64, indices of tables.
        deformed: (N,) bool.
        control_points: (N, 2, 5, 5, 5) float32, see `training.draws.BatchParameters`.
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, 1, D, H, W) in `dtype`, mask (N, 1, D, H, W) uint8.
    """
    image, mask = torch.ops.vnet_fast.augment(
        ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype
    )
    return image, mask


def augments_by_kernel(device: torch.device) -> bool:
    """Whether `augment` runs its kernel on a device. Otherwise it waits for the device."""
    kernels = load_kernels("augment") if device.type == "cuda" else None
    return kernels is not None and trials.passed("augment", kernels, device)


def augment_definition(
    ranks: Tensor, tables: Tensor, masks: Tensor, control_points: Tensor, deformed: np.ndarray, num_classes: int
) -> tuple[Tensor, Tensor]:
    """`augment` in plain PyTorch, for volumes that are gathered already. The kernel is tested against it, and it runs
    where the kernel can't.

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
    image, mask = match_histograms(ranks, tables), masks
    chosen = np.flatnonzero(deformed).tolist()
    if chosen:
        image, mask = image.clone(), masks.clone()
        image[chosen], mask[chosen] = deform(image[chosen], masks[chosen], control_points[chosen], num_classes)
    return image[:, None], mask[:, None]


def match_histograms(ranks: Tensor, tables: Tensor) -> Tensor:
    """Volumes with the intensity distributions of other volumes.

    Args:
        ranks: (N, D, H, W) integers from 0 to 65535.
        tables: (N, 65536) float32, each the table of the volume to match, see `data.intensity.to_ranks`.

    Returns:
        (N, D, H, W) float32.
    """
    return torch.stack([table[rank] for rank, table in zip(ranks.long(), tables, strict=True)])


def deform(image: Tensor, mask: Tensor, control_points: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Deformed volumes and masks.

    Linear interpolation with border padding. The labels of a mask are interpolated one by one, and the largest weight
    wins; where no label has more weight than the background, the background wins.

    Args:
        image: (N, D, H, W) floating point.
        mask: (N, D, H, W) uint8 labels below `num_classes`.
        control_points: (N, 2, 5, 5, 5), see `training.draws.BatchParameters`.
        num_classes: background included.

    Returns:
        (image, mask), with the shapes and types of the arguments.
    """
    n, d, h, w = image.shape
    shift = displacement(control_points, (d, h, w))
    # there is no displacement along z, so that each slice is sampled by itself
    x = torch.arange(w, device=image.device) + shift[:, 0]
    y = torch.arange(h, device=image.device)[:, None] + shift[:, 1]
    grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1).reshape(n * d, h, w, 2)
    labels = torch.stack([(mask == k).to(image.dtype) for k in range(1, num_classes)], dim=2)
    volumes = torch.cat([image[:, :, None], labels], dim=2).reshape(n * d, num_classes, h, w)
    sampled = F.grid_sample(volumes, grid.to(image.dtype), padding_mode="border", align_corners=True)
    sampled = sampled.reshape(n, d, num_classes, h, w)
    weight, label = sampled[:, :, 1:].max(dim=2)
    background = 1 - sampled[:, :, 1:].sum(dim=2)
    return sampled[:, :, 0], torch.where(weight > background, label + 1, 0).to(mask.dtype)


def displacement(control_points: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The B-spline displacement of every voxel.

    Args:
        control_points: (N, 2, 5, 5, 5), see `training.draws.BatchParameters`.
        shape: voxels, (D, H, W).

    Returns:
        (N, 2, D, H, W), in x and y, in voxels: from where the deformed volume takes each voxel.
    """
    for axis, length in zip((2, 3, 4), shape, strict=True):
        weights = spline_weights(length, control_points.device)
        control_points = torch.tensordot(control_points.movedim(axis, -1), weights.T, 1).movedim(-1, axis)
    return control_points


def spline_weights(length: int, device: torch.device | None = None) -> Tensor:
    """The weight of each control point of an axis at each voxel of it.

    Args:
        length: of the axis, voxels.
        device: of the result.

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


@operator("vnet_fast::augment")
def _augment(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    stored = ranks, tables, masks, cases, intensities_of, deformed, control_points
    kernels = kernels_for("augment", ranks, *stored, dtype)
    if kernels is not None:
        image, mask = kernels.augment(*stored, dtype)
        return image, mask
    image, mask = augment_definition(
        # widened, because torch indexes with signed types only
        ranks[cases].to(torch.int32) & 0xFFFF,
        tables[intensities_of],
        masks[cases],
        control_points,
        deformed.cpu().numpy(),
        num_classes,
    )
    return image.to(dtype), mask


@_augment.register_fake
def _(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    shape = (cases.shape[0], 1, *ranks.shape[1:])
    return ranks.new_empty(shape, dtype=dtype), masks.new_empty(shape)
