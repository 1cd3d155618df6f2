"""Windows that cover a volume, and the weights with which their predictions are averaged.

Along each axis the windows are spread evenly. Each has a Gaussian weight, divided by the sum of all windows' weights
at that voxel. The windows of a volume are all combinations of the windows of its axes, so that the products of the
axes' weights sum to 1 at every voxel. No map of the sums is needed, and a voxel that only one window covers has
weight 1.

Source:
    Gaussian weights and even spread as in nnU-Net (Isensee et al. 2021). It divides by a map of the summed weights,
    with a lower bound for small weights. Far from a window's centre along one axis, such a bound makes the weights
    along the other axes constant, which gives a seam.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vnet_fast.nn.topology import SIZE_MULTIPLE

# standard deviation of the weights, as a share of the window's length (nnU-Net's and MONAI's)
SIGMA = 1 / 8
# Windows are not halved below it, because each halving shows the network less of what it was trained on (on PROMISE12,
# Dice is 0.71 with windows of 48 x 48 x 16, 0.65 with one side of 32, and 0.50 with both).
SMALLEST = 64


@dataclass(frozen=True)
class Window:
    """A window of a volume: a slice of each axis z, y, x, and the float32 weights along each."""

    where: tuple[slice, slice, slice]
    axis_weights: tuple[Tensor, Tensor, Tensor]

    def weights(self) -> Tensor:
        """The weight of each voxel, (d, h, w) float32, above 0 and at most 1."""
        z, y, x = self.axis_weights
        return z[:, None, None] * y[:, None] * x


def starts(length: int, window: int, overlap: float) -> list[int]:
    """The first voxels of the windows along an axis: the fewest windows that overlap enough, spread evenly.

    Args:
        length: voxels of the axis.
        window: voxels of a window, at most `length`.
        overlap: the least share of the window by which neighbours overlap, 0 <= overlap < 1.

    Returns:
        increasing numbers from 0 to length - window.
    """
    stride = max(1, int(window * (1 - overlap)))
    strides = math.ceil((length - window) / stride)
    return [round(i * (length - window) / max(1, strides)) for i in range(strides + 1)]


def axis_weights(length: int, window: int, first: Sequence[int]) -> list[Tensor]:
    """The weights of the windows along an axis.

    Args:
        length: voxels of the axis.
        window: voxels of a window.
        first: the first voxel of each window; together they cover the axis.

    Returns:
        a (window,) float32 tensor for each window; at each voxel of the axis they sum to 1.
    """
    distance = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    gaussian = torch.exp(-((distance / (SIGMA * window)) ** 2) / 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in first:
        total[start : start + window] += gaussian
    return [(gaussian / total[start : start + window]).float() for start in first]


def cover(
    shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float, device: str | torch.device = "cpu"
) -> list[Window]:
    """The windows that cover a volume.

    Args:
        shape: (D, H, W) voxels of the volume.
        window: (d, h, w) voxels of a window; along an axis where the volume is shorter, its length is used.
        overlap: the least share of the window by which neighbours overlap, 0 <= overlap < 1.
        device: of the weights.

    Returns:
        the windows, in the order of their voxels in memory.

    Raises:
        ValueError: if overlap is outside of its range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be 0 or more and below 1; got {overlap}")
    axes = []
    for length, extent in zip(shape, clip_to_shape(window, shape), strict=True):
        first = starts(length, extent, overlap)
        weights = [w.to(device) for w in axis_weights(length, extent, first)]
        axes.append([(slice(start, start + extent), w) for start, w in zip(first, weights, strict=True)])
    return [
        Window((z, y, x), (z_weights, y_weights, x_weights))
        for (z, z_weights), (y, y_weights), (x, x_weights) in itertools.product(*axes)
    ]


def clip_to_shape(window: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The window, clipped along the axes where a volume is shorter."""
    d, h, w = (min(extent, length) for extent, length in zip(window, shape, strict=True))
    return d, h, w


def halve_longest_axis(
    shape: tuple[int, int, int], smallest: int = SMALLEST, multiple: int = SIZE_MULTIPLE
) -> tuple[int, int, int] | None:
    """A shape with its longest axis halved, rounded up to a multiple of a number of voxels.

    Args:
        shape: (d, h, w) voxels.
        smallest: the length that is not halved any more.
        multiple: the number; the default fits every network.

    Returns:
        the new shape; None if no axis is longer than `smallest`.
    """
    longest = max(shape)
    if longest <= smallest:
        return None
    half = math.ceil(longest / 2 / multiple) * multiple
    longest_axis = shape.index(longest)
    d, h, w = (half if axis == longest_axis else length for axis, length in enumerate(shape))
    return d, h, w
