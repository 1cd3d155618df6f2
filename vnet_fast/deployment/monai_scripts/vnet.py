"""V-Net in plain PyTorch, for prediction.

Source:
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# how many convolutions each stage has, from the input to the output, and whether there is one to the classes
TOPOLOGIES = {
    "paper": ((1, 2, 3, 3, 3), (3, 3, 2, 1), False),
    "caffe": ((1, 1, 2, 3, 3), (3, 2, 1, 1), True),
}
GROUPS, EPS = 8, 1e-5


class Norm(nn.Module):
    """Instance norm, or group norm of 8 groups.

    Args:
        kind: `instance` or `group`.
        channels: of the volumes.
    """

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.groups = channels if kind == "instance" else math.gcd(GROUPS, channels)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised volumes; unlike PyTorch's module, also of a single voxel."""
        return torch.group_norm(x, self.groups, self.weight, self.bias, EPS)


class Activated(nn.Module):
    """A convolution with norm and PReLU; a residual is added before the PReLU.

    Args:
        convolution: of the layer.
        norm: `instance`, `group` or None.
    """

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d, norm: str | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = Norm(norm, convolution.out_channels) if norm else nn.Identity()
        self.activation = nn.PReLU(convolution.out_channels)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(N, C', D', H', W') of (N, C, D, H, W)."""
        x = self.norm(self.convolution(x))
        y: Tensor = self.activation(x if residual is None else x + residual)
        return y


class Stage(nn.Module):
    """Convolutions that keep the shape; the residual is added in the last one."""

    def __init__(self, in_channels: int, channels: int, count: int, kernel_size: int, norm: str | None) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * count
        self.layers = nn.ModuleList(full(widths[i], widths[i + 1], kernel_size, norm) for i in range(count))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(N, C', D, H, W) of (N, C, D, H, W)."""
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        y: Tensor = last(x, residual)
        return y


def full(in_channels: int, channels: int, kernel_size: int, norm: str | None) -> Activated:
    """A layer that keeps the shape."""
    padding = kernel_size // 2
    return Activated(nn.Conv3d(in_channels, channels, kernel_size, padding=padding, bias=norm is None), norm)


class VNet(nn.Module):
    """V-Net: volumes to logits.

    Args:
        in_channels: of the volumes.
        out_channels: classes or regions.
        base_channels: channels of the first stage, doubled with every halving of the resolution.
        topology: `paper` (figure 2 of the paper) or `caffe` (the authors' released network).
        norm: None, `instance` or `group`.
        levels: resolutions.
        kernel_size: of the stages' convolutions.
        halvings: along (D, H, W), how many of the steps to the next resolution halve it, the last ones; None: all.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int,
        topology: str = "paper",
        norm: str | None = None,
        levels: int = 5,
        kernel_size: int = 5,
        halvings: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        left_path, right_path, wide_head = TOPOLOGIES[topology]
        self.in_channels, self.base_channels = in_channels, base_channels
        d, h, w = halvings or (levels - 1,) * 3
        self.multiples = [2**d, 2**h, 2**w]
        # of the steps left, the last ones halve an axis
        strides = [(1 + (left <= d), 1 + (left <= h), 1 + (left <= w)) for left in range(levels - 1, 0, -1)]
        width = [base_channels * 2**level for level in range(levels)]
        bias = norm is None
        self.left = nn.ModuleList(
            Stage(width[level] if level else in_channels, width[level], left_path[level], kernel_size, norm)
            for level in range(levels)
        )
        self.down = nn.ModuleList(
            Activated(nn.Conv3d(width[level], width[level + 1], stride, stride, bias=bias), norm)
            for level, stride in enumerate(strides)
        )
        skipped = width[-2::-1]
        entering = [width[-1], *(2 * channels for channels in skipped[:-1])]
        self.up = nn.ModuleList(
            Activated(nn.ConvTranspose3d(source, skip, stride, stride, bias=bias), norm)
            for source, skip, stride in zip(entering, skipped, reversed(strides), strict=True)
        )
        self.right = nn.ModuleList(
            Stage(2 * skip, 2 * skip, count, kernel_size, norm)
            for skip, count in zip(skipped, right_path[-(levels - 1) :], strict=True)
        )
        last = 2 * base_channels
        self.wide_head = full(last, out_channels, kernel_size, norm) if wide_head else nn.Identity()
        self.head = nn.Conv3d(out_channels if wide_head else last, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, out_channels, D, H, W) of (N, in_channels, D, H, W); the shape is padded to what halves evenly."""
        shape, pads = x.shape[2:], []
        for length, multiple in zip(reversed(shape), reversed(self.multiples), strict=True):
            missing = -length % multiple
            pads += [missing // 2, missing - missing // 2]
        x = F.pad(x, pads)
        # the input is added to the first stage's output, repeated over its channels
        residual = x if self.in_channels == 1 else x[:, torch.arange(self.base_channels) % self.in_channels]
        skips = []
        for level, stage in enumerate(self.left):
            x = stage(x, residual)
            if level < len(self.down):
                skips.append(x)
                x = residual = self.down[level](x)
        for up, stage in zip(self.up, self.right, strict=True):
            x = torch.cat([up(x), skips.pop()], 1)
            x = stage(x, x)
        x = self.head(self.wide_head(x))
        for axis, length in enumerate(shape, start=2):
            x = x.narrow(axis, pads[2 * (4 - axis)], length)
        return x
