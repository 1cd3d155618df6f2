"""Calibration: whether of the voxels with a probability of 0.8, 80 % are in the reference.

The voxels of a class are divided by its probability into bins of the same width. In each bin, the mean probability is
compared with the share of voxels that are in the reference. The expected calibration error (ECE) is the mean of the
absolute difference over the bins, weighted by their voxels:

    ECE = Σ |share - mean probability| · voxels / Σ voxels

Only voxels of a box around prediction and reference count. In the far background, where every network is certain, there
are so many voxels that any network would seem well calibrated.

Source:
    Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017, also for the number of bins.
    Deviation: theirs is the confidence in the most probable class; ours is the probability of each foreground class.
    Mehrtash, Wells, Tempany, Abolmaesumi and Kapur, IEEE Transactions on Medical Imaging 39, 2020, measure the
    calibration of segmentation in boxes around the structure too. Deviation: ours cover the prediction too.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """The voxels in each bin of the probability; those of several cases can be added.

    Args:
        voxels: (BINS,) their number.
        inside: (BINS,) how many of them are in the reference.
        probability: (BINS,) the sum of their probabilities.
    """

    voxels: NDArray[np.int64]
    inside: NDArray[np.int64]
    probability: NDArray[np.float64]

    @classmethod
    def of(cls, probability: NDArray[np.floating], inside: NDArray[np.bool_]) -> "Calibration":
        """That of voxels.

        Args:
            probability: of each voxel, 0 to 1.
            inside: whether it is in the reference, of the same shape.
        """
        values = probability.astype(np.float64).ravel()
        # 1 belongs to the last bin
        number = np.minimum((values * BINS).astype(np.int64), BINS - 1)
        voxels = np.bincount(number, minlength=BINS)
        return cls(
            voxels.astype(np.int64),
            np.bincount(number[inside.ravel()], minlength=BINS).astype(np.int64),
            np.bincount(number, values, BINS).astype(np.float64),
        )

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(self.voxels + other.voxels, self.inside + other.inside, self.probability + other.probability)

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1; NaN without voxels."""
        total = int(self.voxels.sum())
        return float(np.abs(self.inside - self.probability).sum()) / total if total else math.nan

    @property
    def mean_probability(self) -> list[float]:
        """Of the voxels in each bin; NaN for an empty one."""
        return _ratios(self.probability, self.voxels)

    @property
    def share(self) -> list[float]:
        """Of the voxels in each bin that are in the reference; NaN for an empty one."""
        return _ratios(self.inside, self.voxels)


def _ratios(numerator: NDArray[np.number], voxels: NDArray[np.int64]) -> list[float]:
    return [float(n) / int(v) if v else math.nan for n, v in zip(numerator, voxels, strict=True)]


def pooled(cases: Iterable[Mapping[int, Calibration]], label: int) -> Calibration | None:
    """The calibration of a label in all cases together; None if none has it."""
    found = [case[label] for case in cases if label in case]
    return sum(found[1:], found[0]) if found else None
