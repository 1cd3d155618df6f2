"""Augmentation as one operation: volumes that take another's intensities and are deformed by B-splines.

As the paper: a volume takes the intensity distribution of another training volume (histogram matching, by
ranks and tables), and some are deformed by cubic B-splines on a mesh of 2x2x2 cells (5x5x5 control points).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops.dispatch import kernels_for, load_kernels

MESH = 2
SPLINE_ORDER = 3
CONTROL_POINTS = MESH + SPLINE_ORDER
# ITK's spline domain reaches this far beyond the centres of the first and the last voxel
DOMAIN_MARGIN = 0.625


def augment(ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype=torch.float32):
    """A training batch of N volumes from M stored ones, deformed and with other intensities.

    Nothing is read on the host where the kernel runs, so that a CUDA graph can hold it. There, what is
    not deformed costs only the look-up.

    Args:
        ranks: (M, D, H, W) int16 with the bits of uint16, see `intensity.to_ranks`.
        tables: (M', 65536) float32, of the distributions of intensity.
        masks: (M, D, H, W) uint8 labels below `num_classes`.
        cases: (N,) int64, which volumes and masks.
        intensities_of: (N,) int64, which tables.
        deformed: (N,) bool.
        control_points: (N, 2, 5, 5, 5) float32, see `training.draws.BatchParameters`.
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, 1, D, H, W) in `dtype`, mask (N, 1, D, H, W) uint8.
    """
    return torch.ops.vnet_fast.augment(
        ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype
    )


def augments_by_kernel(device):
    """Whether `augment` runs its kernel on a device; else it waits for the device."""
    return device.type == "cuda" and load_kernels("augment") is not None


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
        control_points: (N, 2, 5, 5, 5), see `training.draws.BatchParameters`.
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
        control_points: (N, 2, 5, 5, 5), see `training.draws.BatchParameters`.
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


def augment_definition(ranks, tables, masks, control_points, deformed, num_classes):
    """`augment` of volumes that are gathered already, in plain PyTorch.

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


@torch.library.custom_op("vnet_fast::augment", mutates_args=())
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
    kernels = kernels_for("augment", ranks)
    stored = ranks, tables, masks, cases, intensities_of, deformed, control_points
    if kernels is not None and kernels.supports(*stored, dtype):
        return kernels.augment(*stored, dtype)
    image, mask = augment_definition(
        # widened in use: torch indexes with signed types only
        ranks[cases].to(torch.int32) & 0xFFFF,
        tables[intensities_of],
        masks[cases],
        control_points,
        deformed.cpu().numpy(),
        num_classes,
    )
    return image.to(dtype), mask


@_augment.register_fake
def _(ranks, tables, masks, cases, intensities_of, deformed, control_points, num_classes, dtype):
    shape = (cases.shape[0], 1, *ranks.shape[1:])
    return ranks.new_empty(shape, dtype=dtype), masks.new_empty(shape)
