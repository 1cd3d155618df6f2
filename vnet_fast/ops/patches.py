"""Patches of stored volumes of any size, with everything that augmentation can change, in one gather.

A patch's voxel o has the value of the stored volume at M o + s(o), as in `ops.transform`, where M includes the place of
the patch in its volume. What lies beyond the edge of a patch that is turned or deformed is read from the volume.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vnet_fast.ops import trials
from vnet_fast.ops.augment import displacement
from vnet_fast.ops.dispatch import kernels_for, load_kernels
from vnet_fast.ops.intensities import change_intensities
from vnet_fast.ops.transform import largest, nodes, one_hot, sample
from vnet_fast.ops.transform_rows import CELLS

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]


def patches(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    places: Tensor,
    cases: Tensor,
    intensities_of: Tensor,
    deformed: Tensor,
    control_points: Tensor,
    transforms: Tensor,
    shape: Sequence[int],
    num_classes: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """A training batch of N patches of M stored volumes.

    Args:
        ranks: (T,) int16 with the bits of uint16, of all volumes one after the other, see `data.intensity.to_ranks`.
        tables: (M', 65536) float32, the intensity of each rank in M' distributions.
        masks: (T,) uint8 labels below `num_classes`.
        places: (M, 4) int64, of each volume the index of its first voxel, D, H and W.
        cases, intensities_of, deformed, control_points: see `ops.augment.augment`; the domain of the splines is the
            patch.
        transforms: (N, FIELDS) float32, see `ops.transform_rows`; M maps to voxels of the stored volume, and the cells
            are of its axes.
        shape: of a patch, (d, h, w).
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, 1, d, h, w) in `dtype`, mask (N, 1, d, h, w) uint8.
    """
    image, mask = torch.ops.vnet_fast.patches(
        ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, list(shape),
        num_classes, dtype,
    )  # fmt: skip
    return image, mask


def patches_by_kernel(device: torch.device) -> bool:
    """Whether `patches` runs its kernel on a device. Otherwise it waits for the device."""
    kernels = load_kernels("patches") if device.type == "cuda" else None
    return kernels is not None and trials.passed("patches", kernels, device)


def patches_definition(
    ranks: Tensor,
    tables: Tensor,
    masks: Tensor,
    places: NDArray[np.int64],
    cases: NDArray[np.int64],
    intensities_of: NDArray[np.int64],
    deformed: NDArray[np.bool_],
    control_points: Tensor,
    transforms: NDArray[np.float32],
    shape: Shape,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """`patches` in plain PyTorch. The kernel is tested against it, and it runs where the kernel can't.

    Args:
        ranks, tables, masks, control_points, shape, num_classes: see `patches`.
        places, cases, intensities_of, deformed, transforms: likewise, on the host.

    Returns:
        image (N, 1, d, h, w) float32 and mask (N, 1, d, h, w) uint8.
    """
    images, labels = [], []
    for case, table, is_deformed, points, row in zip(
        cases.tolist(), intensities_of.tolist(), deformed.tolist(), control_points, transforms, strict=True
    ):
        first, *lengths = places[case].tolist()
        last = first + lengths[0] * lengths[1] * lengths[2]
        stored = ranks[first:last].view(lengths), masks[first:last].view(lengths)
        image, mask = _patch(*stored, tables[table], points if is_deformed else None, row, shape, num_classes)
        images.append(change_intensities(image, tables[table, 0], tables[table, -1], row))
        labels.append(mask)
    return torch.stack(images)[:, None], torch.stack(labels)[:, None]


def _patch(
    ranks: Tensor,
    mask: Tensor,
    table: Tensor,
    control_points: Tensor | None,
    row: NDArray[np.float32],
    shape: Shape,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Intensities and labels of a patch of a stored volume (D, H, W)."""
    lengths = mask.shape[::-1]
    cells = row[CELLS : CELLS + 3].astype(int).tolist()
    full = all(count == length - 1 for count, length in zip(cells, lengths, strict=True))
    box = None if control_points is not None else _whole_voxels(row, mask.shape, shape)
    if box is not None and full:
        where, turned = box
        return _look_up(ranks[where], table).flip(turned), mask[where].flip(turned)
    places = _places(row, control_points, shape, mask.device)
    labels = largest(_read(_box_of(places, mask.shape), places, lambda where: one_hot(mask[where], num_classes)))
    if not full:
        for axis, (count, length) in enumerate(zip(reversed(cells), mask.shape, strict=True)):
            ranks = ranks.index_select(axis, nodes(count, length, mask.device))
        scales = [count / max(length - 1, 1) for count, length in zip(cells, lengths, strict=True)]
        places = [
            place.clamp(0, length - 1) * scale for place, length, scale in zip(places, lengths, scales, strict=True)
        ]
    image = _read(_box_of(places, ranks.shape), places, lambda where: _look_up(ranks[where], table)[None])
    return image[0], labels


def _look_up(ranks: Tensor, table: Tensor) -> Tensor:
    # widened, because torch indexes with signed types only
    return table[ranks.to(torch.int32) & 0xFFFF]


def _whole_voxels(row: NDArray[np.float32], stored: Sequence[int], shape: Shape) -> tuple[Box, list[int]] | None:
    """The box of a patch that is at most mirrored, and the axes along which it is; None for any other patch."""
    matrix = row[:12].reshape(3, 4)
    signs, offsets = np.sign(np.diag(matrix)), matrix[:, 3]
    if not np.array_equal(matrix[:, :3], np.diag(signs)) or 0 in signs or (offsets != np.rint(offsets)).any():
        return None
    slices = []
    for sign, offset, length, extent in zip(signs, offsets.astype(int), stored[::-1], shape[::-1], strict=True):
        first = offset if sign > 0 else offset - extent + 1
        if first < 0 or first + extent > length:
            return None
        slices.append(slice(int(first), int(first) + extent))
    x, y, z = slices
    return (z, y, x), (2 - np.flatnonzero(signs < 0)).tolist()


def _places(
    row: NDArray[np.float32], control_points: Tensor | None, shape: Shape, device: torch.device
) -> list[Tensor]:
    """The places (d, h, w) of the patch's voxels along x, y and z, in voxels of the stored volume."""
    z, y, x = (torch.arange(length, device=device, dtype=torch.float64) for length in shape)
    shift = None if control_points is None else displacement(control_points[None], shape)[0]
    places = []
    for axis in range(3):
        of_x, of_y, of_z, offset = row[4 * axis : 4 * axis + 4].tolist()
        plane = (of_y * y).float()[:, None] + (of_x * x).float()
        place = (of_z * z + offset).float()[:, None, None] + plane
        places.append(place if shift is None or axis == 2 else place + shift[axis])
    return places


def _box_of(places: list[Tensor], stored: Sequence[int]) -> Box:
    """The part of a volume (D, H, W) that interpolation at these places reads."""
    slices = []
    for place, length in zip(places, stored[::-1], strict=True):
        low, high = (int(value) for value in torch.stack(place.aminmax()).floor().tolist())
        first = min(max(low, 0), length - 1)
        slices.append(slice(first, min(max(high + 2, first + 1), length)))
    x, y, z = slices
    return z, y, x


def _read(box: Box, places: list[Tensor], volumes_in: Callable[[Box], Tensor]) -> Tensor:
    """(K, d, h, w): what `volumes_in` gives of a box, (K, ., ., .), interpolated at places of the volume."""
    coordinates = []
    for place, where in zip(places, reversed(box), strict=True):
        length = where.stop - where.start
        coordinates.append((place - where.start) * (2 / max(length - 1, 1)) - 1)
    return sample(volumes_in(box), torch.stack(coordinates, dim=-1))


@torch.library.custom_op("vnet_fast::patches", mutates_args=())
def _patches(
    ranks: Tensor, tables: Tensor, masks: Tensor, places: Tensor, cases: Tensor, intensities_of: Tensor,
    deformed: Tensor, control_points: Tensor, transforms: Tensor, shape: list[int], num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    choices = places, cases, intensities_of, deformed, control_points, transforms
    kernels = kernels_for("patches", ranks, ranks, tables, masks, *choices, shape, dtype)
    if kernels is not None:
        image, mask = kernels.patches(ranks, tables, masks, *choices, shape, dtype)
        return image, mask
    where, volumes, tables_of, moved, rows = (
        tensor.cpu().numpy() for tensor in (places, cases, intensities_of, deformed, transforms)
    )
    depth, height, width = shape
    image, mask = patches_definition(
        ranks,
        tables,
        masks,
        where,
        volumes,
        tables_of,
        moved,
        control_points,
        rows,
        (depth, height, width),
        num_classes,
    )
    return image.to(dtype), mask


@_patches.register_fake
def _(
    ranks: Tensor, tables: Tensor, masks: Tensor, places: Tensor, cases: Tensor, intensities_of: Tensor,
    deformed: Tensor, control_points: Tensor, transforms: Tensor, shape: list[int], num_classes: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    extent = (cases.shape[0], 1, *shape)
    return ranks.new_empty(extent, dtype=dtype), masks.new_empty(extent)
