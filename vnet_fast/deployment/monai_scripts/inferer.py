"""Windows that cover a volume, with Gaussian weights."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor


class WindowInferer(Inferer):
    """Probabilities of volumes, averaged over windows that are spread evenly.

    MONAI's SlidingWindowInferer averages logits, and shifts the last window instead of spreading all.

    Args:
        window: size of the windows along each axis, voxels.
        overlap: the least share of the window by which neighbours overlap, 0 to below 1.
        sigma: standard deviation of the weights, as a share of the window.
        sigmoid: whether each output has a probability of its own, instead of one class of all.
    """

    def __init__(self, window: Sequence[int], overlap: float, sigma: float, sigmoid: bool) -> None:
        self.window, self.overlap, self.sigma, self.sigmoid = list(window), overlap, sigma, sigmoid

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """(N, K, *spatial) probabilities of (N, C, *spatial) volumes."""
        axes = [list(self._windows(*axis)) for axis in zip(inputs.shape[2:], self.window, strict=True)]
        average: Tensor | None = None
        for windows in itertools.product(*axes):
            where: Any = (..., *(place for place, _ in windows))
            z, y, x = (weights.to(inputs.device) for _, weights in windows)
            logits = network(inputs[where].contiguous(), *args, **kwargs).float()
            found = torch.sigmoid(logits) if self.sigmoid else torch.softmax(logits, 1)
            if average is None:
                average = found.new_zeros(*found.shape[:2], *inputs.shape[2:])
            average[where] += found * (z[:, None, None] * y[:, None] * x)
        assert average is not None
        return average

    def _windows(self, length: int, window: int) -> Iterator[tuple[slice, Tensor]]:
        """The windows along an axis with their weights, which sum to 1 at each voxel."""
        window = min(window, length)
        strides = math.ceil((length - window) / max(1, int(window * (1 - self.overlap))))
        first = [round(i * (length - window) / max(1, strides)) for i in range(strides + 1)]
        distance = (torch.arange(window, dtype=torch.float64) - (window - 1) / 2) / (self.sigma * window)
        gaussian, total = torch.exp(-(distance**2) / 2), torch.zeros(length, dtype=torch.float64)
        for start in first:
            total[start : start + window] += gaussian
        for start in first:
            yield slice(start, start + window), (gaussian / total[start : start + window]).float()
