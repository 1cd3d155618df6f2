"""An augmented batch from stored volumes: an affine map, a deformation, a low resolution and other intensities.

With r the ranks of a volume and t the table of the volume whose intensities it takes, v = t[r]. Output voxel
o = (x, y, z) has the value of v at

    q = M o + s(o),  clamped to the volume

interpolated linearly between the eight voxels around it, with the affine map M and the displacement s of
`augment.py`. Its label is the one with the largest sum of weights, and the smallest label if sums are equal. An image
of low resolution is read from the voxels nearest to the nodes of a coarser lattice, of n cells on an axis of L voxels:
node k is voxel ⌊k (L - 1) / n + 1/2⌋. With l and h the first and the last value of t, the intensity then becomes

    v + σ g        noise, g standard normal: Philox 4x32 of the seed and the voxel's index, and Box-Muller
    v b            brightness
    v c            contrast, clipped to b l and b h
    l' + (h' - l') ((v - l') / (h' - l'))^γ      gamma, where l' and h' are b min(c, 1) times l and h; or from h'

The definition, with sources, is `transform_definition` in `vnet_fast/ops/transform.py`, and `vnet_fast/ops/
transform_rows.py` has the columns of a volume's row of numbers. As in `augment.py`, every label is a class here.

Bytes moved per voxel, for an image of b bytes per voxel: 3 read, b + 1 written. A voxel that stays where it is looks
up one number in a table of 256 KiB; one that moves looks up eight numbers, ranks and labels, which takes most of the
time. What is not switched on for a volume costs it a comparison.
"""

import torch
import triton
import triton.language as tl

from vnet_fast.kernels import augment
from vnet_fast.kernels.augment import LEVELS, POINTS, _displacements, _largest, _look_up, _neighbours

# columns of a volume's row of numbers
ROW_COLUMNS = {
    "CELLS": 12, "MOVED": 15, "NOISE": 16, "SEED": 17, "BRIGHTNESS": 19, "CONTRAST": 20, "GAMMA": 21, "INVERTED": 22,
}  # fmt: skip
ROW_LENGTH = 23
# global values that a kernel reads must be of type constexpr
CELLS, MOVED, NOISE, SEED, BRIGHTNESS, CONTRAST, GAMMA, INVERTED = map(tl.constexpr, ROW_COLUMNS.values())
FIELDS = tl.constexpr(ROW_LENGTH)
CORNERS = tl.constexpr(8)

NUM_WARPS = 4
# Rows and columns of a slice that a program writes if the volume moves. The places, ranks and labels of a thread's four
# voxels, with eight corners each, need about 110 registers.
TILE = (4, 128)
# Voxels that a program writes if the volume stays where it is: 16 bytes of ranks for each thread.
RUN = 1024
# most voxels along an axis, because the nodes of a lattice are found with 32 bits
MAX_LENGTH = 2**14


@triton.jit
def _cosine(turn):
    """The cosine of a turn in 2⁻²⁴ of a whole one, by Taylor's series of the nearest quarter turn."""
    # the compiler's cosine reduces large angles in local memory
    quarter = (turn + (1 << 21)) >> 22
    angle = (turn - (quarter << 22)).to(tl.float32) * (1.5707963267948966 / 4194304)
    square = angle * angle
    sine = angle * (1 - square * (1 / 6 - square * (1 / 120 - square * (1 / 5040 - square * (1 / 362880)))))
    cosine = 1 - square * (0.5 - square * (1 / 24 - square * (1 / 720 - square * (1 / 40320))))
    cosine = tl.where(quarter & 1 == 0, cosine, sine)
    return tl.where((quarter + 1) & 2 == 0, cosine, -cosine)


@triton.jit
def _standard_normal(seed, voxel):
    """The numbers of `standard_normal` in `vnet_fast/ops/intensities.py` at the indices `voxel`."""
    first, second, third, fourth = tl.randint4x(seed, (voxel // 4).to(tl.uint32))
    lane = (voxel % 4).to(tl.int32)
    radius = tl.where(lane < 2, first, third) >> 8
    turn = (tl.where(lane < 2, second, fourth) >> 8).to(tl.int32)
    # a sine is the cosine of three quarters of a turn more
    turn += tl.where(lane % 2 == 0, 0, 3 << 22)
    return tl.sqrt(-2 * tl.log((radius + 1).to(tl.float32) * (1 / 16777216))) * _cosine(turn)


@triton.jit
def _change_intensity(value, table_ptr, row_ptr, voxel):
    """The intensities of the voxels with these indices in their volume, after all changes of the volume."""
    deviation = tl.load(row_ptr + NOISE)
    if deviation > 0:
        seed = tl.load(row_ptr + SEED).to(tl.int64) + (tl.load(row_ptr + SEED + 1).to(tl.int64) << 16)
        value += deviation * _standard_normal(seed, voxel)
    brightness, contrast, gamma = (
        tl.load(row_ptr + BRIGHTNESS),
        tl.load(row_ptr + CONTRAST),
        tl.load(row_ptr + GAMMA),
    )
    value *= brightness
    low, high = tl.load(table_ptr), tl.load(table_ptr + LEVELS - 1)
    if contrast != 1:
        value = tl.minimum(tl.maximum(value * contrast, brightness * low), brightness * high)
    if gamma != 1:
        scale = brightness * tl.minimum(contrast, 1)
        # the least positive number of float32, where all intensities are the same
        spread = tl.maximum(scale * (high - low), 1.1754943508222875e-38)
        share = tl.minimum(tl.maximum((value - scale * low) / spread, 0), 1)
        inverted = tl.load(row_ptr + INVERTED) != 0
        share = tl.where(inverted, 1 - share, share)
        share = tl.where(share > 0, tl.exp2(gamma * tl.log2(tl.where(share > 0, share, 1))), 0)
        value = scale * low + spread * tl.where(inverted, 1 - share, share)
    return value


@triton.jit
def _nodes(position, length, cells):
    """The voxels of the lattice's nodes on both sides of a position, and the weight of the second one."""
    # exactly 1 for all voxels
    scale = tl.div_rn(cells, tl.maximum(length - 1, 1).to(tl.float32))
    place = tl.minimum(tl.maximum(position, 0), length - 1) * scale
    first = tl.minimum(place.to(tl.int32), cells.to(tl.int32))
    second = tl.minimum(first + 1, cells.to(tl.int32))
    count = cells.to(tl.int32)
    divisor = tl.maximum(2 * count, 1)
    weight = place - first
    return (2 * first * (length - 1) + count) // divisor, (2 * second * (length - 1) + count) // divisor, weight


@triton.jit
def _offsets(front, back, top, bottom, left, right, plane, width):
    """The eight corners' offsets in a volume: x changes first, z last."""
    front, back = front.to(tl.int64) * plane, back.to(tl.int64) * plane
    top, bottom = top * width, bottom * width
    return (
        front + (top + left),
        front + (top + right),
        front + (bottom + left),
        front + (bottom + right),
        back + (top + left),
        back + (top + right),
        back + (bottom + left),
        back + (bottom + right),
    )


@triton.jit
def _weights(x_weight, y_weight, z_weight):
    """The eight corners' weights, from those of the second voxel along each axis."""
    left, top, front = 1 - x_weight, 1 - y_weight, 1 - z_weight
    near_left, near_right, far_left, far_right = top * left, top * x_weight, y_weight * left, y_weight * x_weight
    return (
        front * near_left,
        front * near_right,
        front * far_left,
        front * far_right,
        z_weight * near_left,
        z_weight * near_right,
        z_weight * far_left,
        z_weight * far_right,
    )


@triton.jit
def _image_at(x, y, z, ranks_ptr, table_ptr, row_ptr, depth, height, width):
    """The intensities at places of a volume, read from its lattice."""
    left, right, x_weight = _nodes(x, width, tl.load(row_ptr + CELLS))
    top, bottom, y_weight = _nodes(y, height, tl.load(row_ptr + CELLS + 1))
    front, back, z_weight = _nodes(z, depth, tl.load(row_ptr + CELLS + 2))
    offsets = _offsets(front, back, top, bottom, left, right, height * width, width)
    weights = _weights(x_weight, y_weight, z_weight)
    value = weights[0] * _look_up(table_ptr, tl.load(ranks_ptr + offsets[0]))
    for corner in tl.static_range(1, CORNERS):
        value += weights[corner] * _look_up(table_ptr, tl.load(ranks_ptr + offsets[corner]))
    return value


@triton.jit
def _label_at(x, y, z, labels_ptr, depth, height, width):
    """The labels at places of a volume."""
    left, right, x_weight = _neighbours(x, width)
    top, bottom, y_weight = _neighbours(y, height)
    front, back, z_weight = _neighbours(z, depth)
    offsets = _offsets(front, back, top, bottom, left, right, height * width, width)
    labels = (
        tl.load(labels_ptr + offsets[0]),
        tl.load(labels_ptr + offsets[1]),
        tl.load(labels_ptr + offsets[2]),
        tl.load(labels_ptr + offsets[3]),
        tl.load(labels_ptr + offsets[4]),
        tl.load(labels_ptr + offsets[5]),
        tl.load(labels_ptr + offsets[6]),
        tl.load(labels_ptr + offsets[7]),
    )
    return _largest(labels, _weights(x_weight, y_weight, z_weight), CORNERS)


@triton.jit
def _source(matrix_ptr, x, y, slice_):
    """Where a row of M takes the output's voxels (x, y, slice_) from."""
    constant = tl.load(matrix_ptr + 2) * slice_ + tl.load(matrix_ptr + 3)
    return tl.load(matrix_ptr) * x[None, :] + tl.load(matrix_ptr + 1) * y[:, None] + constant


@triton.jit
def _move_tile(
    ranks_ptr, table_ptr, labels_ptr, row_ptr, points_ptr, deformed, image_ptr, mask_ptr, depth, height, width,
    stored_depth, stored_height, stored_width, with_labels, TILE: tl.constexpr,
):  # fmt: skip
    """Writes a tile of a slice of a volume that moves, from a stored volume of these lengths; its labels if asked."""
    slice_, tiles = tl.program_id(1), tl.cdiv(width, TILE[1])
    # threads beyond the slice repeat its last row and column, as in `augment.py`
    row = tl.minimum(tl.program_id(0) // tiles * TILE[0] + tl.arange(0, TILE[0]), height - 1)
    column = tl.minimum(tl.program_id(0) % tiles * TILE[1] + tl.arange(0, TILE[1]), width - 1)
    x = _source(row_ptr, column, row, slice_)
    y = _source(row_ptr + 4, column, row, slice_)
    z = _source(row_ptr + 8, column, row, slice_)
    if deformed:
        x_shift, y_shift = _displacements(points_ptr, row, column, depth, height, width)
        x += x_shift
        y += y_shift
    voxel = slice_.to(tl.int64) * height * width + (row[:, None] * width + column[None, :])
    if with_labels:
        tl.store(mask_ptr + voxel, _label_at(x, y, z, labels_ptr, stored_depth, stored_height, stored_width))
    value = _image_at(x, y, z, ranks_ptr, table_ptr, row_ptr, stored_depth, stored_height, stored_width)
    value = _change_intensity(value, table_ptr, row_ptr, voxel)
    tl.store(image_ptr + voxel, value.to(image_ptr.dtype.element_ty))


@triton.jit
def _keep_run(ranks_ptr, table_ptr, labels_ptr, row_ptr, image_ptr, mask_ptr, voxels, RUN: tl.constexpr):
    """Writes consecutive voxels of a volume that stays where it is. The last programs have none."""
    start = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * RUN
    voxel = start + tl.arange(0, RUN)
    inside = voxel < voxels
    value = _look_up(table_ptr, tl.load(ranks_ptr + voxel, mask=inside, other=0))
    value = _change_intensity(value, table_ptr, row_ptr, voxel)
    tl.store(image_ptr + voxel, value.to(image_ptr.dtype.element_ty), mask=inside)
    tl.store(mask_ptr + voxel, tl.load(labels_ptr + voxel, mask=inside), mask=inside)


@triton.jit
def _transform_kernel(
    ranks_ptr, tables_ptr, masks_ptr, cases_ptr, intensities_of_ptr, deformed_ptr, control_points_ptr, transforms_ptr,
    image_ptr, mask_ptr, depth, height, width, voxels, TILE: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    # (tiles of a slice, slices, volumes)
    volume = tl.program_id(2).to(tl.int64)
    stored = tl.load(cases_ptr + volume) * voxels
    ranks_ptr += stored
    labels_ptr = masks_ptr + stored
    table_ptr = tables_ptr + tl.load(intensities_of_ptr + volume) * LEVELS
    row_ptr = transforms_ptr + volume * FIELDS
    image_ptr += volume * voxels
    mask_ptr += volume * voxels
    deformed = tl.load(deformed_ptr + volume)
    if deformed | (tl.load(row_ptr + MOVED) != 0):
        points_ptr = control_points_ptr + volume * 2 * POINTS * POINTS * POINTS
        _move_tile(
            ranks_ptr, table_ptr, labels_ptr, row_ptr, points_ptr, deformed, image_ptr, mask_ptr, depth, height, width,
            depth, height, width, True, TILE,
        )  # fmt: skip
    else:
        _keep_run(ranks_ptr, table_ptr, labels_ptr, row_ptr, image_ptr, mask_ptr, voxels, RUN)


def supports(ranks, tables, masks, cases, intensities_of, deformed, control_points, transforms, dtype):
    """Whether the kernel can handle these tensors; if not, the definition runs.

    Args:
        transforms: (N, 23) float32, contiguous, on the device of the others.
        all others: what `augment.supports` accepts; at most 16384 voxels along each axis.
    """
    if not augment.supports(ranks, tables, masks, cases, intensities_of, deformed, control_points, dtype):
        return False
    if transforms.dtype != torch.float32 or transforms.shape != (cases.numel(), ROW_LENGTH):
        return False
    return transforms.is_contiguous() and transforms.device == ranks.device and max(ranks.shape[1:]) <= MAX_LENGTH


def transform(ranks, tables, masks, cases, intensities_of, deformed, control_points, transforms, dtype):
    """A batch from stored volumes, for tensors that `supports` accepts.

    Args:
        ranks, tables, masks, cases, intensities_of, deformed, control_points, dtype: see `augment.augment`.
        transforms: (N, 23) float32, the row of each volume.

    Returns:
        image: (N, 1, D, H, W) of `dtype`.
        mask: (N, 1, D, H, W) uint8.
    """
    volumes, (_, depth, height, width) = len(cases), ranks.shape
    shape = (volumes, 1, depth, height, width)
    image = torch.empty(shape, dtype=dtype, device=ranks.device)
    mask = torch.empty(shape, dtype=torch.uint8, device=ranks.device)
    grid = (triton.cdiv(height, TILE[0]) * triton.cdiv(width, TILE[1]), depth, volumes)
    inputs = ranks, tables, masks, cases, intensities_of, deformed, control_points, transforms
    lengths = depth, height, width, depth * height * width
    with torch.cuda.device_of(ranks):
        _transform_kernel[grid](*inputs, image, mask, *lengths, TILE, RUN, num_warps=NUM_WARPS)
    return image, mask
