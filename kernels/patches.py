"""Patches of stored volumes of any size, augmented in the same gather.

The formula is that of `transform.py`, with M a map from the patch's voxels to those of the stored volume, which
includes the place of the patch. Volumes lie one after the other, and a table says where each begins and how long its
axes are. A place beyond a patch's edge is read from the volume, which a crop that is deformed afterwards can't do. The
channels of a volume lie one after the other, and each is read by programs of its own, the labels by those of the first.

The definition, with sources, is `patches_definition` in `vnet_fast/ops/patches.py`.

Bytes moved per voxel of a patch, for an image of b bytes per voxel: up to 24 read, b + 1 written; for each further
channel up to 16 and b. The eight neighbours
of a voxel are mostly those of the next one, so that a patch that is not much enlarged reads about 3 of the memory.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels.augment import CONTROL_POINTS, IMAGE_TYPES, LEVELS, MAX_GRID, MAX_SLICE, POINTS, RANK_LEVELS
from vnet_fast.kernels.transform import FIELDS, MAX_LENGTH, NUM_WARPS, ROW_LENGTH, TILE, _move_tile

# of a volume: where it begins, and its depth, height and width
PLACE_LENGTH = 4
PLACE = tl.constexpr(PLACE_LENGTH)


@triton.jit
def _patches_kernel(
    ranks_ptr, tables_ptr, masks_ptr, places_ptr, cases_ptr, intensities_of_ptr, deformed_ptr, control_points_ptr,
    transforms_ptr, image_ptr, mask_ptr, depth, height, width, voxels, channels, TILE: tl.constexpr,
):  # fmt: skip
    # (tiles of a slice, slices, volumes and their channels)
    image = tl.program_id(2).to(tl.int64)
    volume, channel = image // channels, image % channels
    place_ptr = places_ptr + tl.load(cases_ptr + volume) * PLACE
    start = tl.load(place_ptr)
    stored_depth = tl.load(place_ptr + 1).to(tl.int32)
    stored_height = tl.load(place_ptr + 2).to(tl.int32)
    stored_width = tl.load(place_ptr + 3).to(tl.int32)
    stored = stored_depth.to(tl.int64) * stored_height * stored_width
    table_ptr = tables_ptr + (tl.load(intensities_of_ptr + volume) * channels + channel) * LEVELS
    points_ptr = control_points_ptr + volume * 2 * POINTS * POINTS * POINTS
    _move_tile(
        ranks_ptr + start * channels + channel * stored, table_ptr, masks_ptr + start, transforms_ptr + image * FIELDS,
        points_ptr, tl.load(deformed_ptr + volume), image_ptr + image * voxels, mask_ptr + volume * voxels, depth,
        height, width, stored_depth, stored_height, stored_width, channel == 0, TILE,
    )  # fmt: skip


def supports(
    ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, shape, dtype
):  # fmt: skip
    """Whether the kernel can handle these tensors; if not, the definition runs.

    Args:
        all but shape and dtype: the arguments of `patches`, contiguous, not empty, on one device; at most 65535
            channels of all patches together. The stored volumes have at most 16384 voxels along each axis, and less
            than 2³¹ in a slice, which is not looked at here because it is on the device.
        shape: (d, h, w), at most 65535 slices and 16384 voxels along each axis.
        dtype: float32, float16 or bfloat16.
    """
    volumes, images = cases.numel(), len(transforms)
    channels = images // max(volumes, 1)
    needed = [
        (ranks, torch.int16, (masks.numel() * channels,)),
        (tables, torch.float32, (len(tables) // max(channels, 1) * channels, RANK_LEVELS)),
        (masks, torch.uint8, (masks.numel(),)),
        (places, torch.int64, (*places.shape[:1], PLACE_LENGTH)),
        (cases, torch.int64, (volumes,)),
        (intensities_of, torch.int64, (volumes,)),
        (deformed, torch.bool, (volumes,)),
        (control_points, torch.float32, (volumes, 2, *[CONTROL_POINTS] * 3)),
        (transforms, torch.float32, (volumes * channels, ROW_LENGTH)),
    ]
    for tensor, kind, expected in needed:
        if tensor.dtype != kind or tensor.shape != expected or tensor.numel() == 0:
            return False
        if not tensor.is_contiguous() or tensor.device != ranks.device:
            return False
    fits = min(shape) > 0 and max(shape) <= MAX_LENGTH and shape[1] * shape[2] <= MAX_SLICE
    return dtype in IMAGE_TYPES and images <= MAX_GRID and fits


def patches(ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, shape, dtype):
    """A batch of patches, for tensors that `supports` accepts.

    Args:
        ranks: (C T,) int16 with the bits of uint16 ranks, of M volumes one after the other, in each of its C channels.
        tables: (M' C, 65536) float32, the value of each rank.
        masks: (T,) uint8 labels.
        places: (M, 4) int64, of each volume its first voxel's index in `masks`, D, H and W.
        cases: (N,) int64 below M, indices of the stored volumes.
        intensities_of, deformed, control_points: see `augment.augment`; the spline's domain is the patch.
        transforms: (N C, 23) float32, the row of each channel of each patch.
        shape: of a patch, (d, h, w).
        dtype: of the image.

    Returns:
        image: (N, C, d, h, w) of `dtype`.
        mask: (N, 1, d, h, w) uint8.
    """
    volumes, channels, (depth, height, width) = len(cases), len(transforms) // len(cases), shape
    image = torch.empty((volumes, channels, *shape), dtype=dtype, device=ranks.device)
    mask = torch.empty((volumes, 1, *shape), dtype=torch.uint8, device=ranks.device)
    grid = (triton.cdiv(height, TILE[0]) * triton.cdiv(width, TILE[1]), depth, volumes * channels)
    inputs = ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms
    with torch.cuda.device_of(ranks):
        lengths = depth, height, width, depth * height * width, channels
        _patches_kernel[grid](*inputs, image, mask, *lengths, TILE, num_warps=NUM_WARPS)
    return image, mask
