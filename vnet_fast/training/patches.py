"""Where the patches of a batch lie in their volumes, drawn on the host.

Every third patch has a voxel of a foreground class in its middle, or as near to it as the volume allows: a random voxel
of a random class that the volume has. The others lie anywhere in their volumes.

Source:
    the choice of foreground voxels is that of nnU-Net (Isensee et al. 2021). Deviation: exactly every third patch has
    one, whatever the size of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vnet_fast.data.preparation import IGNORED, PreparedCase

# one patch of so many holds foreground
FOREGROUND_EVERY = 3
# voxels of a class that may be the middle of a patch, for each case
MAX_MIDDLES = 10_000
# random numbers for each patch: of its place along z, y, x, and of the class and its voxel
DRAWS = 5
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Middles:
    """The sizes of whole volumes, and voxels of their structures.

    Args:
        shapes: (M, 3) int64, voxels, (z, y, x).
        of_classes: for each volume and each class that it has (n, 3) int64, (z, y, x) of some of its voxels.
    """

    shapes: NDArray[np.int64]
    of_classes: tuple[tuple[NDArray[np.int64], ...], ...]

    @classmethod
    def of(cls, cases: Sequence[PreparedCase], num_classes: int, ignores: bool = False) -> "Middles":
        """Those of prepared cases; with two classes all labels above 0 are one, but what does not count, if any."""
        shapes = np.array([case.shape for case in cases], np.int64).reshape(-1, 3)
        return cls(shapes, tuple(_voxels_of_classes(case.mask, num_classes, ignores) for case in cases))

    def origins(
        self, generator: np.random.Generator, cases: NDArray[np.int64], positions: NDArray[np.int64], shape: Shape
    ) -> NDArray[np.int64]:
        """The first voxels of the patches of a batch, which lie in their volumes.

        Args:
            generator: of random numbers, used for this batch alone.
            cases: (N,) indices of the volumes.
            positions: (N,) the patches' numbers, counted from the first one of the run.
            shape: of a patch, (z, y, x), at most that of any volume.

        Returns:
            (N, 3), (z, y, x).
        """
        numbers = generator.random((len(cases), DRAWS))
        origins = np.empty((len(cases), 3), np.int64)
        for origin, case, position, drawn in zip(origins, cases, positions, numbers, strict=True):
            room = self.shapes[case] - shape
            origin[:] = drawn[:3] * (room + 1)
            classes = self.of_classes[case]
            if classes and position % FOREGROUND_EVERY == FOREGROUND_EVERY - 1:
                voxels = classes[int(drawn[3] * len(classes))]
                middle = voxels[int(drawn[4] * len(voxels))]
                origin[:] = np.clip(middle - np.array(shape) // 2, 0, room)
        return origins


def _voxels_of_classes(mask: NDArray[np.uint8], num_classes: int, ignores: bool) -> tuple[NDArray[np.int64], ...]:
    """Some voxels of each foreground class that a mask has, the same ones at every call."""
    if num_classes == 2:
        counted = mask != IGNORED if ignores else np.True_
        mask = np.minimum(mask, 1) * counted
    generator, found = np.random.default_rng(0), []
    for label in range(1, num_classes):
        voxels = np.flatnonzero(mask == label)
        if len(voxels) > MAX_MIDDLES:
            voxels = np.sort(generator.choice(voxels, MAX_MIDDLES, replace=False))
        if len(voxels):
            found.append(np.column_stack(np.unravel_index(voxels, mask.shape)).astype(np.int64))
    return tuple(found)
