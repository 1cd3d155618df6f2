"""PReLU and its gradients in plain PyTorch, by the operations that are fast where the tensors are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops import channels_last


def prelu(z: Tensor, slope: Tensor) -> Tensor:
    """PReLU of (N, C, *spatial), by a slope (C,) of the same dtype."""
    return channels_last.prelu(z, slope) if channels_last.has_rows(z) else F.prelu(z, slope)


def prelu_gradients(grad_y: Tensor, z: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `prelu`.

    Args:
        grad_y, z: (N, C, *spatial), of one dtype.
        slope: (C,), of the same dtype.

    Returns:
        grad_z: in the dtype of `z`.
        grad_slope: (C,), in float32 or wider.
    """
    # which write in place, so that they have no derivative
    if channels_last.has_rows(z) and not torch.is_grad_enabled():
        grad_y = grad_y.contiguous(memory_format=torch.channels_last_3d)
        grad_z, products = channels_last.prelu_gradients(grad_y, z, slope)
    else:
        wide = slope.reshape(-1, *[1] * (z.ndim - 2))
        grad_z, products = torch.ops.aten._prelu_kernel_backward(grad_y, z, wide)
    others = [axis for axis in range(z.ndim) if axis != 1]
    return grad_z, products.sum(others, dtype=torch.promote_types(z.dtype, torch.float32))
