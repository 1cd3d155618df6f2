"""Windows that cover a volume, and the weights with which their predictions are averaged.

Along each axis the windows are spread evenly and each has a Gaussian weight, divided by the sum of
all windows' weights at that voxel. The windows of a volume are all combinations of those of its
axes, so that the products of the axes' weights sum to 1 at every voxel: no map of their sum is
kept, and a voxel that one window covers has weight 1.

Source:
    Gaussian weights and even spread as in nnU-Net (Isensee et al. 2021). It divides by a map of the
    summed weights, with a floor under the small ones; far from a window's centre along one axis, a
    floor makes the weights along the others constant, which is a seam.
"""

import itertools
import math
from dataclasses import dataclass

import torch

from vnet_fast.nn.vnet import SIZE_MULTIPLE

# standard deviation of the weights, as a share of the window's length (nnU-Net's and MONAI's)
SIGMA = 1 / 8
# no shorter windows than half of the default size: each halving shows the network less of what it
# was trained on (on PROMISE12, windows of 48 x 48 x 16: Dice 0.71; one side at 32: 0.65; both: 0.50)
SMALLEST = 64


@dataclass(frozen=True)
class Window:
    """A part of a volume: a slice of each axis z, y, x, and the float32 weights along each."""

    where: tuple[slice, slice, slice]
    axis_weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def weights(self):
        """(d, h, w) float32, on the device of the axes' weights; above 0, at most 1."""
        z, y, x = self.axis_weights
        return z[:, None, None] * y[:, None] * x


def starts(length, window, overlap):
    """The first voxels of the windows along an axis: as few as overlap by at least that share,
    spread evenly.

    Args:
        length: voxels of the axis.
        window: voxels of a window, at most `length`.
        overlap: share of the window, 0 <= overlap < 1.

    Returns:
        list of int, rising from 0 to length - window.
    """
    stride = max(1, int(window * (1 - overlap)))
    strides = math.ceil((length - window) / stride)
    return [round(i * (length - window) / max(1, strides)) for i in range(strides + 1)]


def axis_weights(length, window, first):
    """The weights of the windows along an axis.

    Args:
        length: voxels of the axis.
        window: voxels of a window.
        first: the first voxel of each window; together they cover the axis.

    Returns:
        list of (window,) float32 tensors; at each voxel of the axis their sum is 1.
    """
    distance = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    gaussian = torch.exp(-((distance / (SIGMA * window)) ** 2) / 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in first:
        total[start : start + window] += gaussian
    return [(gaussian / total[start : start + window]).float() for start in first]


def cover(shape, window, overlap, device="cpu"):
    """The windows of a volume.

    Args:
        shape: (D, H, W) voxels of the volume.
        window: (d, h, w) voxels of a window; where the volume is shorter, its length is taken.
        overlap: share of the window by which neighbours overlap at least, 0 <= overlap < 1.
        device: of the weights.

    Returns:
        list of Window, in the order of the voxels in memory.

    Raises:
        ValueError: if overlap is outside of its range.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be 0 or more and below 1; got {overlap}")
    axes = []
    for length, extent in zip(shape, fitted(window, shape), strict=True):
        first = starts(length, extent, overlap)
        weights = [w.to(device) for w in axis_weights(length, extent, first)]
        axes.append([(slice(start, start + extent), w) for start, w in zip(first, weights, strict=True)])
    return [Window(*zip(*parts, strict=True)) for parts in itertools.product(*axes)]


def fitted(window, shape):
    """The window, cut to a volume's shape where that is shorter."""
    return tuple(min(extent, length) for extent, length in zip(window, shape, strict=True))


def halved(window):
    """The window with its longest axis halved, to a multiple of 16 voxels; None if its longest axis
    has 64 or fewer.
    """
    longest = max(window)
    if longest <= SMALLEST:
        return None
    axis = window.index(longest)
    half = math.ceil(longest / 2 / SIZE_MULTIPLE) * SIZE_MULTIPLE
    return (*window[:axis], half, *window[axis + 1 :])
