"""Augmentation with everything at once: an affine map, a deformation, a low resolution, and other intensities.

One gather per volume, whatever is switched on. An output voxel o has the value of the stored volume at M o + s(o), with
an affine map M and the displacement s of `ops.augment`; then its intensity changes. `ops.augment` alone is the paper's
augmentation and costs less.

A row of `ops.transform_rows` says what changes in each volume, so that an iteration sends one small tensor.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops import cpu_patches, trials
from vnet_fast.ops.augment import deform, displacement, match_histograms
from vnet_fast.ops.dispatch import kernels_for, load_kernels
from vnet_fast.ops.intensities import change_intensities
from vnet_fast.ops.operator import operator
from vnet_fast.ops.transform_rows import CELLS, MOVED


def transform(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    transforms: Tensor,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A training batch of N volumes from M stored ones, with everything that augmentation can change.

    Like `ops.augment.augment`, the kernel reads nothing on the host.

    Args:
        ranks, tables, masks, cases, intensities_of, deformed, control_points: see `ops.augment.augment`.
        transforms: (N, FIELDS) float32, see `ops.transform_rows`.
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, 1, D, H, W) in `dtype`, mask (N, 1, D, H, W) uint8.
    """
    image, mask = torch.ops.vnet_fast.transform(
        ranks, tables, masks, cases, intensities_of, deformed, control_points, transforms, num_classes, dtype
    )
    return image, mask


def transforms_by_kernel(device: torch.device) -> bool:
    """Whether `transform` runs its kernel on a device. Otherwise it waits for the device."""
    kernels = load_kernels("transform") if device.type == "cuda" else None
    return kernels is not None and trials.passed("transform", kernels, device)


def transform_definition(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    control_points: Tensor,
    deformed: np.ndarray,
    transforms: np.ndarray,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """`transform` in plain PyTorch, for volumes that are gathered already.

    Args:
        ranks, tables, masks, control_points, deformed, num_classes: see `ops.augment.augment_definition`.
        transforms: (N, FIELDS) float32 on the host.

    Returns:
        image (N, 1, D, H, W) float32 and mask (N, 1, D, H, W) uint8.
    """
    images, labels = [], []
    for image, table, mask, points, is_deformed, row in zip(
        match_histograms(ranks, tables), tables, masks, control_points, deformed, transforms, strict=True
    ):
        if row[MOVED]:
            image, mask = move(image, mask, points if is_deformed else None, row, num_classes)
        elif is_deformed:
            image, mask = (result[0] for result in deform(image[None], mask[None], points[None], num_classes))
        images.append(change_intensities(image, table[0], table[-1], row))
        labels.append(mask)
    return torch.stack(images)[:, None], torch.stack(labels)[:, None]


def move(
    image: Tensor, mask: Tensor, control_points: Tensor | None, row: np.ndarray, num_classes: int
) -> tuple[Tensor, Tensor]:
    """A volume and its mask, read at other places.

    Linear interpolation. A place outside of the volume counts as the nearest one inside, for image and mask. The labels
    of a mask are interpolated one by one, and the largest weight wins, as in `ops.augment.deform`.

    A low resolution is simulated in the image alone, as if it had been acquired so: it is read at the lattice of CELLS
    cells over each axis, from the voxel that is nearest to each node, and interpolated between the nodes.

    Args:
        image: (D, H, W) float32.
        mask: (D, H, W) uint8 labels below `num_classes`.
        control_points: (2, 5, 5, 5) of the deformation, or None.
        row: of `transforms`.
        num_classes: background included.
    """
    lengths = image.shape[::-1]
    cells = row[CELLS : CELLS + 3].astype(int).tolist()
    full = all(count == length - 1 for count, length in zip(cells, lengths, strict=True))
    turned = None if control_points is not None else _mirrored_axes(row, lengths)
    if turned is not None and full:
        return image.flip(turned), mask.flip(turned)
    grid = _sampling_grid(row, control_points, image)
    if full:
        sampled = sample(torch.cat([image[None], one_hot(mask, num_classes)]), grid)
        return sampled[0], largest(sampled[1:])
    coarse = image
    for axis, (count, length) in enumerate(zip(reversed(cells), image.shape, strict=True)):
        coarse = coarse.index_select(axis, nodes(count, length, image.device))
    labels = mask.flip(turned) if turned is not None else largest(sample(one_hot(mask, num_classes), grid))
    return sample(coarse[None], grid)[0], labels


def one_hot(mask: Tensor, num_classes: int) -> Tensor:
    """(K - 1, D, H, W) float32: whether a voxel has each label but the background's."""
    return torch.stack([(mask == k).float() for k in range(1, num_classes)])


def largest(weights: Tensor) -> Tensor:
    """(D, H, W) uint8: the label with the largest weight, of weights (K - 1, D, H, W) without the background's."""
    if len(weights) == 1:
        return (weights[0] > 1 - weights[0]).to(torch.uint8)
    weight, label = weights.max(dim=0)
    return torch.where(weight > 1 - weights.sum(dim=0), label + 1, 0).to(torch.uint8)


def nodes(cells: int, length: int, device: torch.device) -> Tensor:
    """The voxel nearest to each node of an axis; the next one where two are as near. Whole numbers do not round."""
    cell = torch.arange(cells + 1, device=device)
    return (2 * cell * (length - 1) + cells) // max(2 * cells, 1)


def _mirrored_axes(row: np.ndarray, lengths: tuple[int, ...]) -> list[int] | None:
    """The axes of (D, H, W) that M turns round if it does nothing else, else None."""
    matrix = row[:12].reshape(3, 4)
    mirrored = np.diag(matrix) < 0
    last = np.array(lengths) - 1
    flip = np.column_stack([np.diag(np.where(mirrored, -1, 1)), np.where(mirrored, last, 0)])
    return (2 - np.flatnonzero(mirrored)).tolist() if np.array_equal(matrix, flip) else None


def _sampling_grid(row: np.ndarray, control_points: Tensor | None, like: Tensor) -> Tensor:
    """(D, H, W, 3): the place of each voxel in x, y and z, from -1 at the first voxel to 1 at the last one."""
    depth, height, width = like.shape
    z, y, x = (torch.arange(length, device=like.device, dtype=torch.float64) for length in like.shape)
    shift = None if control_points is None else displacement(control_points[None], (depth, height, width))[0]
    places = []
    for axis, length in enumerate((width, height, depth)):
        of_x, of_y, of_z, offset = row[4 * axis : 4 * axis + 4].tolist()
        scale = 2 / max(length - 1, 1)
        slice_offset = ((of_z * z + offset) * scale - 1).float()
        plane = (of_y * scale * y).float()[:, None] + (of_x * scale * x).float()
        place = slice_offset[:, None, None] + plane
        if shift is not None and axis < 2:
            place.add_(shift[axis], alpha=scale)
        places.append(place)
    return torch.stack(places, dim=-1)


def sample(volumes: Tensor, grid: Tensor) -> Tensor:
    """(K, D, H, W): volumes (K, ., ., .) at the places of a grid (D, H, W, 3)."""
    # PyTorch has a thread for each volume of a batch, so that the grid is cut into one part for each thread
    depth = len(grid)
    parts = next(parts for parts in range(min(torch.get_num_threads(), depth), 0, -1) if depth % parts == 0)
    sampled = F.grid_sample(
        volumes.expand(parts, -1, -1, -1, -1),
        grid.reshape(parts, depth // parts, *grid.shape[1:]),
        padding_mode="border",
        align_corners=True,
    )
    return sampled.transpose(0, 1).reshape(len(volumes), *grid.shape[:3])


@operator("vnet_fast::transform")
def _transform(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    transforms: Tensor,
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    stored = ranks, tables, masks, cases, intensities_of, deformed, control_points, transforms
    kernels = kernels_for("transform", ranks, *stored, dtype)
    if kernels is not None:
        image, mask = kernels.transform(*stored, dtype)
        return image, mask
    made = cpu_patches.transform(*stored, dtype=dtype)
    if made is not None:
        return made
    image, mask = transform_definition(
        # widened, because torch indexes with signed types only
        ranks[cases].to(torch.int32) & 0xFFFF,
        tables[intensities_of],
        masks[cases],
        control_points,
        deformed.cpu().numpy(),
        transforms.cpu().numpy(),
        num_classes,
    )
    return image.to(dtype), mask


@_transform.register_fake
def _(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    transforms: Tensor,
    num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    shape = (cases.shape[0], 1, *ranks.shape[1:])
    return ranks.new_empty(shape, dtype=dtype), masks.new_empty(shape)
