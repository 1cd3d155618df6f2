"""Elementwise operations with a number for each channel, on channels-last tensors of a CPU.

PyTorch's loops are as long as the innermost axis on which all operands agree. For a channels-last volume and a number
for each channel this axis has C elements, 8 or 16 at full resolution, and a loop costs more than its work. Here
the rows of a volume are one axis of W C elements, and the numbers are repeated W times: the same arithmetic, the same
bits, up to twenty times as fast. PyTorch's backward pass of PReLU is not vectorised either; its parts are.
"""

import torch
from torch import Tensor

from vnet_fast.ops.eager import is_eager


def has_rows(*tensors: Tensor | None) -> bool:
    """Whether these tensors are dense channels-last volumes of a CPU, so that the functions below can take them."""
    return all(
        tensor is None
        or (
            tensor.device.type == "cpu"
            and tensor.ndim == 5
            and tensor.numel() > 0
            and is_eager(tensor)
            and tensor.is_contiguous(memory_format=torch.channels_last_3d)
        )
        for tensor in tensors
    )


def rows(volume: Tensor) -> Tensor:
    """A view (N D H, W C) of a channels-last volume (N, C, D, H, W)."""
    n, c, d, h, w = volume.shape
    return volume.permute(0, 2, 3, 4, 1).view(n * d * h, w * c)


def _as_volume(table: Tensor, volume: Tensor) -> Tensor:
    """The volume whose rows are given, with the shape and strides of another."""
    return table.as_strided(volume.shape, volume.stride())


def add_channels(volume: Tensor, numbers: Tensor) -> Tensor:
    """The sum of a volume (N, C, D, H, W) and a number for each channel, (C,)."""
    return _as_volume(rows(volume) + numbers.repeat(volume.shape[4]), volume)


def prelu(volume: Tensor, slope: Tensor) -> Tensor:
    """PReLU of a volume (N, C, D, H, W); `slope` (C,) has its type."""
    table: Tensor = torch.ops.aten._prelu_kernel(rows(volume), slope.repeat(volume.shape[4]))
    return _as_volume(table, volume)


def prelu_gradients(grad: Tensor, volume: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `prelu`, both (N, C, D, H, W); the second summed over the voxels is that of `slope`."""
    table, above = rows(volume), rows(grad)
    # the gradient where the volume is positive, and where it is not
    positive: Tensor = torch.ops.aten.threshold_backward(above, table, 0)
    negative = above - positive
    grad_volume = positive.addcmul_(negative, slope.repeat(volume.shape[4]))
    return _as_volume(grad_volume, volume), _as_volume(negative.mul_(table), volume)
