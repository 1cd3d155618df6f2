"""An augmented batch from stored volumes, with other intensities and a deformation, in one pass.

With r the ranks of a volume and t the table of the volume whose intensities it takes, v = t[r]. The intensities are
looked up before they are interpolated. Voxel (z, y, x) of a deformed volume has the value of v at

    (z, min(max(y + s_y, 0), H - 1), min(max(x + s_x, 0), W - 1))

interpolated linearly between the four voxels around it; nothing moves along z. Its label is the one with the largest
sum of weights, and the smallest label if sums are equal. The displacement s is

    s = Σ_pqr β(u_z - p + 1) β(u_y - q + 1) β(u_x - r + 1) c_pqr    over the 5 x 5 x 5 control points
    u = 2 (i + 0.625) / (L + 0.25)                                  at index i of an axis of L voxels
    β(t) = (max(2 - |t|, 0)³ - 4 max(1 - |t|, 0)³) / 6

A program sums over p and q once for each of its rows, which leaves five terms for each voxel.

Source: Milletari, Navab, Ahmadi 2016, section 4, with the domain of ITK's BSplineTransformInitializer.
The definition is `augment_definition` in `vnet_fast/ops/augment.py`. The one deviation is that every label is a class
here, where the definition treats labels from `num_classes` on as background in a deformed volume.

Bytes moved per voxel, for an image of b bytes per voxel: 3 read, b + 1 written. Besides, each voxel looks up one number
in a table of 256 KiB, which fits in the caches. A deformed voxel looks up four numbers, ranks and labels. These
look-ups take most of the time, because neighbours in the volume are rarely neighbours in the table.
"""

import torch
import triton
import triton.language as tl

# cubic B-splines on a mesh of 2x2x2 cells, whose domain reaches beyond the centres of the outer voxels
CONTROL_POINTS = 5
MESH = 2
DOMAIN_MARGIN = 0.625
# of uint16
RANK_LEVELS = 65536
# global values that a kernel reads must be of type constexpr
POINTS = tl.constexpr(CONTROL_POINTS)
CELLS = tl.constexpr(MESH)
MARGIN = tl.constexpr(DOMAIN_MARGIN)
LEVELS = tl.constexpr(RANK_LEVELS)
# the length of a vector of the control points with equal x
PLANE = tl.constexpr(triton.next_power_of_2(CONTROL_POINTS**2))

NUM_WARPS = 4
# Rows and columns of a slice that a program deforms. A warp deforms 32 voxels of a row at a time, whose ranks lie side
# by side. A thread deforms 8 rows of one column with its five weights, in about 125 registers, so that 4 programs fit
# on a multiprocessor. Without a deformation, 1024 voxels in a row are 16 bytes of ranks for each thread.
TILE = (8, 128)
# CUDA's limit for the second and third axis of a grid
MAX_GRID = 65535
# most voxels of a slice, because offsets within a slice have 32 bits
MAX_SLICE = 2**31 - 1
IMAGE_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _spline_weight(index, length, point):
    """β of a control point at a voxel of an axis; zero for control points that do not exist."""
    distance = tl.abs((index + MARGIN) * (CELLS / (length - 1 + 2 * MARGIN)) - point + 1)
    outer, inner = tl.maximum(2 - distance, 0), tl.maximum(1 - distance, 0)
    return (outer * outer * outer - 4 * inner * inner * inner) * (1 / 6)


@triton.jit
def _displacement(control_points_ptr, plane_weight, column, width):
    """The displacement along one axis, (rows, columns); `plane_weight` (rows, PLANE) are the weights in z and y."""
    plane = tl.arange(0, PLANE)
    displacement = 0.0
    for point in tl.static_range(POINTS):
        # (5, 5, 5), x the last
        points = tl.load(control_points_ptr + plane * POINTS + point, mask=plane < POINTS * POINTS, other=0)
        row_sum = tl.sum(plane_weight * points[None, :], axis=1)
        displacement += row_sum[:, None] * _spline_weight(column, width, point)[None, :]
    return displacement


@triton.jit
def _displacements(control_points_ptr, row, column, depth, height, width):
    """The displacement of the voxels of a slice in x and y."""
    plane = tl.arange(0, PLANE)
    plane_weight = _spline_weight(row[:, None], height, (plane % POINTS)[None, :])
    plane_weight *= _spline_weight(tl.program_id(1), depth, plane // POINTS)[None, :]
    x = _displacement(control_points_ptr, plane_weight, column, width)
    control_points_ptr += POINTS * POINTS * POINTS
    return x, _displacement(control_points_ptr, plane_weight, column, width)


@triton.jit
def _neighbours(position, length):
    """The voxels on both sides of a position, clamped to the border, and the weight of the second one."""
    position = tl.minimum(tl.maximum(position, 0), length - 1)
    first = position.to(tl.int32)
    return first, tl.minimum(first + 1, length - 1), position - first


@triton.jit
def _look_up(table_ptr, rank):
    # the bits of uint16, in a signed type
    return tl.load(table_ptr + (rank.to(tl.int32) & 0xFFFF))


@triton.jit
def _share(label, labels, weights, CORNERS: tl.constexpr):
    """The sum of the weights of the voxels that have a label."""
    share = tl.where(labels[0] == label, weights[0], 0.0)
    for corner in tl.static_range(1, CORNERS):
        share += tl.where(labels[corner] == label, weights[corner], 0.0)
    return share


@triton.jit
def _largest(labels, weights, CORNERS: tl.constexpr):
    """The label with the largest share, and the smallest label if shares are equal."""
    label = labels[0]
    share = _share(label, labels, weights, CORNERS)
    for corner in tl.static_range(1, CORNERS):
        other = labels[corner]
        other_share = _share(other, labels, weights, CORNERS)
        wins = (other_share > share) | ((other_share == share) & (other < label))
        label, share = tl.where(wins, other, label), tl.where(wins, other_share, share)
    return label


@triton.jit
def _deform_tile(
    ranks_ptr,
    table_ptr,
    labels_ptr,
    control_points_ptr,
    image_ptr,
    mask_ptr,
    depth,
    height,
    width,
    TILE: tl.constexpr,
):
    """Writes a tile of the slice that the pointers to ranks, labels, image and mask point to."""
    tiles = tl.cdiv(width, TILE[1])
    # Threads beyond the slice repeat its last row and column, so that no access needs a mask. Because of the
    # repetition, Triton assigns neighbouring voxels to neighbouring threads. Otherwise a thread would store 8
    # neighbours as 16 bytes, and the ranks that a warp looks up would be 8 times as far apart.
    row = tl.minimum(tl.program_id(0) // tiles * TILE[0] + tl.arange(0, TILE[0]), height - 1)
    column = tl.minimum(tl.program_id(0) % tiles * TILE[1] + tl.arange(0, TILE[1]), width - 1)
    x, y = _displacements(control_points_ptr, row, column, depth, height, width)
    left, right, right_weight = _neighbours(column[None, :] + x, width)
    top, bottom, bottom_weight = _neighbours(row[:, None] + y, height)
    offsets = (top * width + left, top * width + right, bottom * width + left, bottom * width + right)
    left_weight, top_weight = 1 - right_weight, 1 - bottom_weight
    upper = left_weight * _look_up(table_ptr, tl.load(ranks_ptr + offsets[0]))
    upper += right_weight * _look_up(table_ptr, tl.load(ranks_ptr + offsets[1]))
    lower = left_weight * _look_up(table_ptr, tl.load(ranks_ptr + offsets[2]))
    lower += right_weight * _look_up(table_ptr, tl.load(ranks_ptr + offsets[3]))
    value = top_weight * upper + bottom_weight * lower
    offset = row[:, None] * width + column[None, :]
    tl.store(image_ptr + offset, value.to(image_ptr.dtype.element_ty))

    weights = (
        top_weight * left_weight,
        top_weight * right_weight,
        bottom_weight * left_weight,
        bottom_weight * right_weight,
    )
    labels = (
        tl.load(labels_ptr + offsets[0]),
        tl.load(labels_ptr + offsets[1]),
        tl.load(labels_ptr + offsets[2]),
        tl.load(labels_ptr + offsets[3]),
    )
    tl.store(mask_ptr + offset, _largest(labels, weights, 4))


@triton.jit
def _match_run(ranks_ptr, table_ptr, labels_ptr, image_ptr, mask_ptr, remaining, RUN: tl.constexpr):
    """Writes consecutive voxels that are not deformed."""
    voxel = tl.arange(0, RUN)
    inside = voxel < remaining
    value = _look_up(table_ptr, tl.load(ranks_ptr + voxel, mask=inside, other=0))
    tl.store(image_ptr + voxel, value.to(image_ptr.dtype.element_ty), mask=inside)
    tl.store(mask_ptr + voxel, tl.load(labels_ptr + voxel, mask=inside), mask=inside)


@triton.jit
def _augment_kernel(
    ranks_ptr, tables_ptr, masks_ptr, cases_ptr, intensities_of_ptr, deformed_ptr, control_points_ptr,
    image_ptr, mask_ptr, depth, height, width, voxels, TILE: tl.constexpr,
):  # fmt: skip
    # (tiles of a slice, slices, volumes)
    volume, slice_ = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    stored = tl.load(cases_ptr + volume) * voxels
    ranks_ptr += stored
    labels_ptr = masks_ptr + stored
    table_ptr = tables_ptr + tl.load(intensities_of_ptr + volume) * LEVELS
    image_ptr += volume * voxels
    mask_ptr += volume * voxels
    if tl.load(deformed_ptr + volume):
        start = slice_ * height * width
        _deform_tile(
            ranks_ptr + start,
            table_ptr,
            labels_ptr + start,
            control_points_ptr + volume * 2 * POINTS * POINTS * POINTS,
            image_ptr + start,
            mask_ptr + start,
            depth,
            height,
            width,
            TILE,
        )
    else:
        # each program writes as many voxels as a tile has; the last programs may have none
        start = (slice_ * tl.num_programs(0) + tl.program_id(0)) * TILE[0] * TILE[1]
        _match_run(
            ranks_ptr + start,
            table_ptr,
            labels_ptr + start,
            image_ptr + start,
            mask_ptr + start,
            voxels - start,
            TILE[0] * TILE[1],
        )


def supports(ranks, tables, masks, cases, intensities_of, deformed, control_points, dtype):
    """Whether the kernel can handle these tensors; if not, the definition runs.

    Args:
        all but dtype: the arguments of `augment`, contiguous, not empty, on one device; at most 65535 volumes and
            slices, and less than 2³¹ voxels in a slice.
        dtype: float32, float16 or bfloat16.
    """
    if ranks.ndim != 4 or dtype not in IMAGE_TYPES:
        return False
    _, depth, height, width = ranks.shape
    volumes = cases.numel()
    needed = [
        (ranks, torch.int16, ranks.shape),
        (tables, torch.float32, (*tables.shape[:1], RANK_LEVELS)),
        (masks, torch.uint8, ranks.shape),
        (cases, torch.int64, (volumes,)),
        (intensities_of, torch.int64, (volumes,)),
        (deformed, torch.bool, (volumes,)),
        (control_points, torch.float32, (volumes, 2, *[CONTROL_POINTS] * 3)),
    ]
    for tensor, kind, shape in needed:
        if tensor.dtype != kind or tensor.shape != shape or tensor.numel() == 0:
            return False
        if not tensor.is_contiguous() or tensor.device != ranks.device:
            return False
    return max(volumes, depth) <= MAX_GRID and height * width <= MAX_SLICE


def augment(ranks, tables, masks, cases, intensities_of, deformed, control_points, dtype):
    """A batch from stored volumes, for tensors that `supports` accepts.

    Args:
        ranks: (M, D, H, W) int16 with the bits of uint16 ranks, of M stored volumes.
        tables: (T, 65536) float32, the value of each rank.
        masks: (M, D, H, W) uint8 labels.
        cases: (N,) int64 below M, indices of the stored volumes.
        intensities_of: (N,) int64 below T, indices of the tables.
        deformed: (N,) bool; the `control_points` of the other volumes are not read.
        control_points: (N, 2, 5, 5, 5) float32, the displacement in x and in y of the control point at (z, y, x),
            in voxels.
        dtype: of the image.

    Returns:
        image: (N, 1, D, H, W) of `dtype`.
        mask: (N, 1, D, H, W) uint8.
    """
    volumes, (_, depth, height, width) = len(cases), ranks.shape
    shape = (volumes, 1, depth, height, width)
    image = torch.empty(shape, dtype=dtype, device=ranks.device)
    mask = torch.empty(shape, dtype=torch.uint8, device=ranks.device)
    grid = (triton.cdiv(height, TILE[0]) * triton.cdiv(width, TILE[1]), depth, volumes)
    lengths = depth, height, width, depth * height * width
    with torch.cuda.device_of(ranks):
        _augment_kernel[grid](
            ranks,
            tables,
            masks,
            cases,
            intensities_of,
            deformed,
            control_points,
            image,
            mask,
            *lengths,
            TILE,
            num_warps=NUM_WARPS,
        )
    return image, mask
