"""`patches` and `transform` by the CPU's kernel: whole volumes are patches that begin at their first voxels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vnet_fast.kernels import cpu_patches as kernels
from vnet_fast.ops import cpu_convolution_choice as choice
from vnet_fast.ops.cpu_library import library


def patches(*tensors: Tensor, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Image and mask of `ops.patches.patches` if the kernel can run, else None.

    Args:
        tensors: the arguments of `ops.patches.patches` from `ranks` to `transforms`.
        shape: of a patch.
        dtype: of the image.
    """
    if not (kernels.supports(*tensors, shape) and choice.kernels_run()):
        return None
    image, mask = kernels.patches(library(), *tensors, shape)
    return image.to(dtype), mask


def transform(
    ranks: Tensor, tables: Tensor, masks: Tensor, *others: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Image and mask of `ops.transform.transform` if the kernel can run, else None.

    Args:
        ranks, tables, masks: see `ops.augment.augment`.
        others: the arguments of `ops.transform.transform` from `cases` to `transforms`.
        dtype: of the image.
    """
    volumes, *shape = ranks.shape
    if ranks.shape != masks.shape or not ranks.is_contiguous() or not masks.is_contiguous():
        return None
    first = torch.arange(volumes) * (masks.numel() // max(volumes, 1))
    places = torch.column_stack([first, torch.tensor(shape).expand(volumes, -1)])
    return patches(ranks.view(-1), tables, masks.view(-1), places, *others, shape=shape, dtype=dtype)
