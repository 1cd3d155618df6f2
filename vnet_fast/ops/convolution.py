"""Exact rewrites of a convolution into shapes for which cuDNN has kernels on tensor cores.

A 5x5x5 convolution has 125 taps. On some GPUs cuDNN offers its tensor-core kernels only for fewer taps or more
channels. Both rewrites keep the volume in channels-last layout and compute the same sums in another order:

    zstack   the five shifts along z become channels: 1x5x5 taps, 5 C channels. The input is copied five times.
    packP    P neighbours along x become one voxel: P C to P K channels, and fewer taps along x. The volume is only
             viewed; the weight is rearranged, and its new places are filled with zeros.

Each rewrite serves all three passes: the gradient of the input is the convolution of the output's gradient with the
mirrored, transposed weight, and the gradient of the weight is rearranged back.

`cudnn` names the convolution as it is. Which of them runs is decided by `convolution_choice`.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.ops.dispatch import kernels_for
from vnet_fast.ops.eager import is_eager

_ONES = [1, 1, 1]


@dataclass(frozen=True)
class Plain:
    """The convolution as it is."""

    name = "cudnn"

    def fits(self, x: Tensor, kernel: tuple[int, ...]) -> bool:
        """Whether it can serve a volume (N, C, D, H, W) and a kernel of (d, h, w) taps."""
        return True

    def input(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """The volume, as the rewritten convolution reads it."""
        return x

    def output(self, y: Tensor) -> Tensor:
        """A result of the rewritten convolution as a volume (N, K, D, H, W)."""
        return y

    def grad_output(self, grad_y: Tensor) -> Tensor:
        """The gradient of the output, as the rewritten convolution reads it."""
        return grad_y

    def weight(self, weight: Tensor) -> Tensor:
        """The weight (K, C, d, h, w), as the rewritten convolution reads it."""
        return weight

    def grad_weight(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of the rewritten weight as one of the weight."""
        return grad


@dataclass(frozen=True)
class ZStack(Plain):
    """The shifts along z as channels."""

    name = "zstack"

    def fits(self, x: Tensor, kernel: tuple[int, ...]) -> bool:
        """It needs more than one tap along z."""
        return kernel[0] > 1

    def input(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """(N, d C, D, H, W); the channels of one shift come before those of the next."""
        kernels = kernels_for("convolution", x, x, kernel[0]) if is_eager(x) else None
        if kernels is not None:
            stacked: Tensor = kernels.stack(x, kernel[0])
            return stacked
        return stack_definition(x, kernel[0])

    def weight(self, weight: Tensor) -> Tensor:
        """(K, d C, 1, h, w)."""
        # as rows of channels, in one copy
        rows = weight.permute(0, 3, 4, 2, 1).flatten(3).contiguous()
        return rows.permute(0, 3, 1, 2).unsqueeze(2)

    def grad_weight(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """(K, C, d, h, w), channels-last."""
        parts: Tensor = grad.squeeze(2).unflatten(1, (shape[2], shape[1]))
        return parts.permute(0, 2, 1, 3, 4).contiguous(memory_format=torch.channels_last_3d)


@dataclass(frozen=True)
class Pack(Plain):
    """Neighbours along x as one voxel.

    Args:
        voxels: how many.
    """

    voxels: int = 2

    @property
    def name(self) -> str:  # type: ignore[override]  # depends on the number
        """`pack` and the number of voxels."""
        return f"pack{self.voxels}"

    def fits(self, x: Tensor, kernel: tuple[int, ...]) -> bool:
        """The rows of the volume must divide into whole voxels."""
        return x.shape[4] % self.voxels == 0

    def input(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """(N, P C, D, H, W / P), a view of a channels-last volume."""
        return self.grad_output(x)

    def output(self, y: Tensor) -> Tensor:
        """(N, K, D, H, W), a view of a channels-last result (N, P K, D, H, W / P)."""
        n, c, d, h, w = y.shape
        rows = y.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1)
        return rows.reshape(n, d, h, w * self.voxels, c // self.voxels).permute(0, 4, 1, 2, 3)

    def grad_output(self, grad_y: Tensor) -> Tensor:
        """(N, P K, D, H, W / P), a view of a channels-last gradient."""
        n, c, d, h, w = grad_y.shape
        rows = grad_y.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1)
        return rows.reshape(n, d, h, w // self.voxels, self.voxels * c).permute(0, 4, 1, 2, 3)

    def weight(self, weight: Tensor) -> Tensor:
        """(P K, P C, d, h, taps), with zeros where a tap has no weight."""
        source, _ = _taps(self.voxels, weight.shape[4], weight.device)
        # one weight of zero behind the last
        found: Tensor = F.pad(weight, (0, 1)).index_select(4, source.flatten()).unflatten(4, source.shape)
        # (K, C, d, h, to, from, taps) -> (to, K, from, C, d, h, taps)
        packed = found.permute(4, 0, 5, 1, 2, 3, 6).flatten(2, 3).flatten(0, 1)
        return packed.contiguous(memory_format=torch.channels_last_3d)

    def grad_weight(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """(K, C, d, h, w), channels-last: the sum over the P places of each weight, in float32 or wider."""
        _, places = _taps(self.voxels, shape[4], grad.device)
        parts = grad.unflatten(1, (self.voxels, shape[1])).unflatten(0, (self.voxels, shape[0]))
        # (to, K, from, C, d, h, taps) -> (K, C, d, h, to from taps)
        found = parts.permute(1, 3, 4, 5, 0, 2, 6).flatten(4).index_select(4, places.flatten())
        wide = torch.promote_types(grad.dtype, torch.float32)
        summed: Tensor = found.unflatten(4, places.shape).sum(5, dtype=wide).to(grad.dtype)
        return summed.contiguous(memory_format=torch.channels_last_3d)


def stack_definition(x: Tensor, taps: int) -> Tensor:
    """The input of `zstack` in plain PyTorch. The kernel is tested against it, and it runs where the kernel can't.

    Args:
        x: (N, C, D, H, W).
        taps: along z.

    Returns:
        (N, taps C, D, H, W), channels-last, with zeros from beyond the volume.
    """
    depth, pad = x.shape[2], taps // 2
    padded = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, 0, 0, 0, 0, pad, pad))
    # (N, taps, H, W, C, D)
    shifted = padded.unfold(1, depth, 1)
    return shifted.permute(0, 5, 2, 3, 1, 4).flatten(4).permute(0, 4, 1, 2, 3)


Rewrite = Plain
REWRITES: dict[str, Rewrite] = {
    rewrite.name: rewrite for rewrite in (Plain(), ZStack(), Pack(voxels=2), Pack(voxels=4), Pack(voxels=8))
}


def packed_reach(voxels: int, taps: int) -> int:
    """How many packed voxels the kernel reaches to each side."""
    return math.ceil((taps // 2) / voxels)


@functools.cache
def _taps(voxels: int, taps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each weight of a packed kernel comes from, and to which places each weight goes.

    Returns:
        source: (to, from, packed taps), the index along x of the weight, or `taps` for a zero.
        places: (taps, P), the indices of a weight's places in `source`, flattened.
    """
    pad, reach = taps // 2, packed_reach(voxels, taps)
    source = torch.full((voxels, voxels, 2 * reach + 1), taps)
    for to in range(voxels):
        for tap in range(taps):
            packed, start = divmod(to + tap - pad, voxels)
            source[to, start, packed + reach] = tap
    places = torch.stack([(source.flatten() == tap).nonzero().flatten() for tap in range(taps)])
    return source.to(device), places.to(device)


def _padding(weight: Tensor) -> list[int]:
    return [length // 2 for length in weight.shape[2:]]


def forward(rewrite: Rewrite, x: Tensor, weight: Tensor) -> Tensor:
    """A convolution of stride 1 that keeps the shape, without bias.

    Args:
        rewrite: of REWRITES, one that fits.
        x: (N, C, D, H, W), channels-last.
        weight: (K, C, d, h, w), channels-last; odd lengths.

    Returns:
        (N, K, D, H, W), channels-last.
    """
    given, rewritten = rewrite.input(x, weight.shape[2:]), rewrite.weight(weight)
    return rewrite.output(F.conv3d(given, rewritten, None, 1, _padding(rewritten)))


def grad_input(rewrite: Rewrite, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `forward` with respect to its volume, (N, C, D, H, W)."""
    if rewrite.name == "cudnn":
        return _backward(grad_y, x, weight, [True, False, False])[0]
    return forward(rewrite, grad_y, weight.flip(2, 3, 4).transpose(0, 1))


def grad_weight(rewrite: Rewrite, grad_y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `forward` with respect to its weight, (K, C, d, h, w)."""
    # only its shape is needed
    shape = rewrite.weight(torch.empty(weight.shape, device="meta")).shape
    rewritten = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last_3d)
    given = rewrite.input(x, weight.shape[2:])
    grad = _backward(rewrite.grad_output(grad_y), given, rewritten, [False, True, False])[1]
    return rewrite.grad_weight(grad, weight.shape)


def _backward(grad_y: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_y, x, weight, None, _ONES, _padding(weight), _ONES, False, [0, 0, 0], 1, mask
    )
    return gradients
