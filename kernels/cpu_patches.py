"""Augmented patches of stored volumes on CPUs, and whole volumes, in one pass.

The formula is that of `patches.py` and `transform.py`: an output voxel o has the value of the stored volume at
M o + s(o), and then its intensity changes. A whole volume is a patch that begins at its first voxel.

A run of 512 voxels of a patch goes through all steps while it is in a core's first cache, in threads of its own:

    1. places    M o by rows, and s as a sum of five terms along x, which each row has of its own
    2. cells     the voxel before each place, and the weights of the next ones along the axes
    3. labels    eight look-ups; where they differ, the label of the largest sum of weights
    4. values    eight ranks and their intensities, interpolated, for each channel
    5. others    noise (Philox 4x32, Box-Muller), brightness, contrast and gamma

A patch whose voxels are stored ones, because it is at most mirrored, needs one look-up for each. What is not switched
on for a patch costs it a comparison. `cpu/patches.h` has the source, with `places.h`, `interpolation.h` and
`intensities.h`.

Bytes moved per voxel of a patch: 3 read and 5 written; up to 24 read, mostly from the cache, if it moves. Besides, a
voxel looks up one number, or eight, in a table of 256 KiB.

Precision: places are float32, to 1e-5 voxels. The same bits for any number of threads.
"""

import ctypes
import functools

import torch

RANK_LEVELS = 65536
CONTROL_POINTS = 5
FIELDS = 23
# of a volume: its first voxel, depth, height and width
PLACE_LENGTH = 4
# float32 holds all places up to it to 1e-3, and offsets of its voxels have 32 bits
MAX_LENGTH, MAX_VOXELS = 2**14, 2**31 - 1
_POINTERS = (
    "ranks", "tables", "masks", "places", "cases", "intensities_of", "deformed", "control_points", "transforms",
    "image", "mask",
)  # fmt: skip
_NUMBERS = ("n", "channels", "d", "h", "w", "threads")


class _Patches(ctypes.Structure):
    """`Patches` of cpu/patches.h."""

    _fields_ = (*((name, ctypes.c_void_p) for name in _POINTERS), *((name, ctypes.c_int64) for name in _NUMBERS))


def supports(ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, shape):
    """Whether the kernel can handle these tensors, and every index is one of a tensor; if not, the definition runs.

    Args:
        all but shape: the arguments of `patches.patches`, contiguous, not empty, on the CPU; stored volumes of at most
            16384 voxels along each axis, and less than 2³¹ together.
        shape: (d, h, w).
    """
    volumes = cases.numel()
    channels = len(transforms) // max(volumes, 1)
    needed = [
        (ranks, torch.int16, (masks.numel() * channels,)),
        (tables, torch.float32, (len(tables) // max(channels, 1) * channels, RANK_LEVELS)),
        (masks, torch.uint8, (masks.numel(),)),
        (places, torch.int64, (*places.shape[:1], PLACE_LENGTH)),
        (cases, torch.int64, (volumes,)),
        (intensities_of, torch.int64, (volumes,)),
        (deformed, torch.bool, (volumes,)),
        (control_points, torch.float32, (volumes, 2, *[CONTROL_POINTS] * 3)),
        (transforms, torch.float32, (volumes * channels, FIELDS)),
    ]
    for tensor, kind, expected in needed:
        if tensor.dtype != kind or tensor.shape != expected or tensor.numel() == 0:
            return False
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            return False
    if len(shape) != 3 or min(shape) < 1 or max(shape) > MAX_LENGTH:
        return False
    chosen, tables_of = cases.tolist(), intensities_of.tolist()
    if min(*chosen, *tables_of) < 0 or max(chosen) >= len(places) or max(tables_of) >= len(tables) // channels:
        return False
    return all(_lies_in(place, masks.numel()) for place in places[cases].tolist())


def _lies_in(place, voxels):
    """Whether a volume lies in the memory of all, and its offsets have 32 bits."""
    first, *lengths = place
    count = lengths[0] * lengths[1] * lengths[2]
    return 0 <= first <= voxels - count and min(lengths) > 0 and max(lengths) <= MAX_LENGTH and count <= MAX_VOXELS


def patches(
    library, ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, shape
):  # fmt: skip
    """A batch of patches, for tensors that `supports` accepts.

    Args:
        library: of the kernels.
        all others: see `patches.patches`.

    Returns:
        image: (N, C, d, h, w) float32.
        mask: (N, 1, d, h, w) uint8.
    """
    volumes, channels = len(cases), len(transforms) // len(cases)
    image = torch.empty((volumes, channels, *shape), dtype=torch.float32)
    mask = torch.empty((volumes, 1, *shape), dtype=torch.uint8)
    tensors = (
        ranks, tables, masks, places, cases, intensities_of, deformed, control_points, transforms, image, mask,
    )  # fmt: skip
    batch = _Patches(*(tensor.data_ptr() for tensor in tensors), volumes, channels, *shape, torch.get_num_threads())
    if _function(library)(ctypes.addressof(batch)):
        raise torch.OutOfMemoryError("no memory for the lattices of patches")
    return image, mask


@functools.cache
def _function(library):
    function = library.vnet_fast_patches
    function.argtypes = (ctypes.c_void_p,)
    return function
