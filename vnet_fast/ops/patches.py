"""Patches of stored volumes of any size, with everything that augmentation can change, in one gather.

A patch's voxel o has the value of the stored volume at M o + s(o), as in `ops.transform`, where M includes the place of
the patch in its volume. What lies beyond the edge of a patch that is turned or deformed is read from the volume.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vnet_fast.ops import cpu_patches, trials
from vnet_fast.ops.augment import displacement
from vnet_fast.ops.dispatch import kernels_for, load_kernels
from vnet_fast.ops.intensities import change_intensities
from vnet_fast.ops.operator import operator
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
        ranks: (C T,) int16 with the bits of uint16, of all volumes one after the other, and in each of its C channels,
            see `data.intensity.to_ranks`.
        tables: (M' C, 65536) float32, the intensity of each rank in M' distributions, of C channels each.
        masks: (T,) uint8 labels below `num_classes`.
        places: (M, 4) int64, of each volume the index of its first voxel in `masks`, D, H and W.
        cases, intensities_of, deformed, control_points: see `ops.augment.augment`; the domain of the splines is the
            patch.
        transforms: (N C, FIELDS) float32, see `ops.transform_rows`; M maps to voxels of the stored volume, and the
            cells are of its axes. The rows of the channels of a patch differ in what changes intensities alone.
        shape: of a patch, (d, h, w).
        num_classes: background included.
        dtype: of the image, floating point.

    Returns:
        image (N, C, d, h, w) in `dtype`, mask (N, 1, d, h, w) uint8.
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
        image (N, C, d, h, w) float32 and mask (N, 1, d, h, w) uint8.
    """
    images, labels = [], []
    channels = len(transforms) // len(cases)
    rows_of_patches, tables = transforms.reshape(len(cases), channels, -1), tables.view(-1, channels, tables.shape[-1])
    for case, table, is_deformed, points, rows in zip(
        cases.tolist(), intensities_of.tolist(), deformed.tolist(), control_points, rows_of_patches, strict=True
    ):
        first, *lengths = places[case].tolist()
        last = first + lengths[0] * lengths[1] * lengths[2]
        stored = ranks[channels * first : channels * last].view(channels, *lengths), masks[first:last].view(lengths)
        image, mask = _patch(*stored, tables[table], points if is_deformed else None, rows[0], shape, num_classes)
        changed = [
            change_intensities(values, levels[0], levels[-1], row)
            for values, levels, row in zip(image, tables[table], rows, strict=True)
        ]
        images.append(torch.stack(changed))
        labels.append(mask)
    return torch.stack(images), torch.stack(labels)[:, None]


def _patch(
    ranks: Tensor,
    mask: Tensor,
    tables: Tensor,
    control_points: Tensor | None,
    row: NDArray[np.float32],
    shape: Shape,
    num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Intensities (C, d, h, w) and labels (d, h, w) of a patch of a stored volume, ranks (C, D, H, W)."""
    lengths = mask.shape[::-1]
    cells = row[CELLS : CELLS + 3].astype(int).tolist()
    full = all(count == length - 1 for count, length in zip(cells, lengths, strict=True))
    box = None if control_points is not None else _whole_voxels(row, mask.shape, shape)
    if box is not None and full:
        where, turned = box
        return _look_up(ranks, tables, where).flip([axis + 1 for axis in turned]), mask[where].flip(turned)
    places = _places(row, control_points, shape, mask.device)
    labels = largest(_read(_box_of(places, mask.shape), places, lambda where: one_hot(mask[where], num_classes)))
    if not full:
        for axis, (count, length) in enumerate(zip(reversed(cells), mask.shape, strict=True)):
            ranks = ranks.index_select(axis + 1, nodes(count, length, mask.device))
        scales = [count / max(length - 1, 1) for count, length in zip(cells, lengths, strict=True)]
        places = [
            place.clamp(0, length - 1) * scale for place, length, scale in zip(places, lengths, scales, strict=True)
        ]
    image = _read(_box_of(places, ranks.shape[1:]), places, lambda where: _look_up(ranks, tables, where))
    return image, labels


def _look_up(ranks: Tensor, tables: Tensor, where: Box) -> Tensor:
    """The intensities (C, ., ., .) of a box of a volume's channels."""
    # widened, because torch indexes with signed types only
    return torch.stack(
        [table[channel[where].to(torch.int32) & 0xFFFF] for channel, table in zip(ranks, tables, strict=True)]
    )


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


@operator("vnet_fast::patches")
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
    made = cpu_patches.patches(ranks, tables, masks, *choices, shape=shape, dtype=dtype)
    if made is not None:
        return made
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
    patches, channels = cases.shape[0], transforms.shape[0] // cases.shape[0]
    return ranks.new_empty((patches, channels, *shape), dtype=dtype), masks.new_empty((patches, 1, *shape))
