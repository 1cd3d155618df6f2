"""The volumes of a training run as tensors, and the batches that are read from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vnet_fast.data.preparation import IGNORED, PreparedCase
from vnet_fast.ops.augment import augment
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform
from vnet_fast.training.draws import BatchSampler


class Volumes:
    """Prepared cases as tensors, with a first axis for the case.

    Args:
        prepared: the cases, all of one shape.
        num_classes: background included; 2 makes all labels above 0 one class.
        ignores: whether masks have voxels that do not count. They have the label after the last class.
    """

    # of the tensors that `gathered` returns
    count = 3

    def __init__(self, prepared: Sequence[PreparedCase], num_classes: int, ignores: bool = False) -> None:
        self.ranks = self._joined([_signed(case.ranks) for case in prepared])
        self.masks = self._joined([torch.from_numpy(case.mask) for case in prepared])
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared])
        _simplify(self.masks, num_classes, ignores)
        self.num_classes = num_classes + ignores

    @staticmethod
    def _joined(volumes: list[Tensor]) -> Tensor:
        return torch.stack(volumes)

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """All tensors, as `augmented` takes them."""
        return self.ranks, self.tables, self.masks

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.stored)

    def __len__(self) -> int:
        return len(self.tables)

    def pin(self) -> None:
        """Moves them to pinned memory, which a GPU reads directly."""
        self.ranks, self.tables, self.masks = (t.pin_memory() for t in (self.ranks, self.tables, self.masks))

    def send(self, device: torch.device) -> None:
        """Moves them to a device."""
        self.ranks, self.tables, self.masks = (t.to(device) for t in (self.ranks, self.tables, self.masks))

    def gathered(self, cases: np.ndarray, intensities_of: np.ndarray, device: torch.device) -> tuple[Tensor, ...]:
        """`stored` of the volumes and tables of a batch, in its order, copied to a device without waiting."""
        pairs = (self.ranks, cases), (self.tables, intensities_of), (self.masks, cases)
        return tuple(self._copied(tensor, indices, device) for tensor, indices in pairs)

    @staticmethod
    def _copied(tensor: Tensor, indices: np.ndarray, device: torch.device) -> Tensor:
        batch = torch.empty((len(indices), *tensor.shape[1:]), dtype=tensor.dtype, device=device)
        for entry, index in zip(batch, indices, strict=True):
            entry.copy_(tensor[index], non_blocking=True)
        return batch

    def augmented(self, stored: Sequence[Tensor], batch: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Image and mask.

        Args:
            stored: volumes, as `stored` has them.
            batch: the arrays of `training.draws.BatchParameters`.
            dtype: of the image.
        """
        cases, intensities_of, deformed, control_points, *transforms = batch
        choices = cases, intensities_of, deformed, control_points
        ranks, tables, masks = stored
        if transforms:
            return transform(ranks, tables, masks, *choices, transforms[0], self.num_classes, dtype)
        return augment(ranks, tables, masks, *choices, self.num_classes, dtype)


class WholeVolumes(Volumes):
    """Prepared cases of any sizes and number of channels, one after the other, of which patches are read.

    Args:
        prepared, num_classes, ignores: as of Volumes.
        shape: of a patch, (z, y, x).
    """

    count = 4

    def __init__(
        self, prepared: Sequence[PreparedCase], num_classes: int, shape: tuple[int, int, int], ignores: bool = False
    ) -> None:
        super().__init__(prepared, num_classes, ignores)
        self._place(prepared, shape)

    def _place(self, prepared: Sequence[PreparedCase], shape: tuple[int, int, int]) -> None:
        self.channels = prepared[0].channels
        shapes = np.array([case.shape for case in prepared], np.int64)
        lengths = shapes.prod(1)
        self.places = torch.from_numpy(np.column_stack([np.cumsum(lengths) - lengths, shapes]))
        self.shape, self.longest = shape, int(lengths.max())
        # those of volumes that stay on the host, which a batch is gathered by
        self._on_host = self.places

    @staticmethod
    def _joined(volumes: list[Tensor]) -> Tensor:
        return torch.cat([volume.flatten() for volume in volumes])

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """All tensors, as `augmented` takes them."""
        return *super().stored, self.places

    def send(self, device: torch.device) -> None:
        """Moves them to a device."""
        super().send(device)
        self.places = self.places.to(device)

    def gathered(self, cases: np.ndarray, intensities_of: np.ndarray, device: torch.device) -> tuple[Tensor, ...]:
        """As that of Volumes; each volume has as much room as the longest one, so that shapes do not change."""
        places = self._on_host[torch.from_numpy(cases)].clone()
        room = len(cases) * self.longest
        ranks = torch.empty(room * self.channels, dtype=torch.int16, device=device)
        masks = torch.empty(room, dtype=torch.uint8, device=device)
        for number, case in enumerate(cases.tolist()):
            for target, part, channels in zip((ranks, masks), self._of_case(case), (self.channels, 1), strict=True):
                start = channels * number * self.longest
                target[start : start + len(part)].copy_(part, non_blocking=True)
        places[:, 0] = torch.arange(len(cases)) * self.longest
        return ranks, self._copied(self.tables, intensities_of, device), masks, send(places, device)

    def _of_case(self, case: int) -> tuple[Tensor, Tensor]:
        """Ranks and labels of a case, one after the other."""
        first, *shape = self._on_host[case].tolist()
        last = first + shape[0] * shape[1] * shape[2]
        return self.ranks[self.channels * first : self.channels * last], self.masks[first:last]

    def augmented(self, stored: Sequence[Tensor], batch: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Image and mask of patches; as that of Volumes."""
        cases, intensities_of, deformed, control_points, transforms = batch
        choices = cases, intensities_of, deformed, control_points, transforms
        ranks, tables, masks, places = stored
        return patches(
            ranks, tables.view(-1, tables.shape[-1]), masks, places, *choices, self.shape, self.num_classes, dtype
        )


class SeparateVolumes(WholeVolumes):
    """Whole volumes that stay where they are, such as in the cache's entries, because memory does not hold all of them.

    Arguments are those of WholeVolumes. They stay on the host.
    """

    def __init__(
        self, prepared: Sequence[PreparedCase], num_classes: int, shape: tuple[int, int, int], ignores: bool = False
    ) -> None:
        self.parts = [(_signed(case.ranks).view(-1), torch.from_numpy(case.mask).view(-1)) for case in prepared]
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared])
        self._simplification = num_classes, ignores
        self.num_classes = num_classes + ignores
        self._place(prepared, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all volumes."""
        volumes = sum(tensor.nbytes for part in self.parts for tensor in part)
        return volumes + self.tables.nbytes + self.places.nbytes

    def _of_case(self, case: int) -> tuple[Tensor, Tensor]:
        """Ranks and labels of a case, one after the other."""
        ranks, mask = self.parts[case]
        mask = mask.clone()
        _simplify(mask, *self._simplification)
        return ranks, mask


def _simplify(masks: Tensor, num_classes: int, ignores: bool) -> None:
    """Makes all labels above 0 one class if there are two, and gives what does not count the label after the last."""
    ignored = masks == IGNORED if ignores else None
    if num_classes == 2:
        masks.clamp_(max=1)
    if ignored is not None:
        masks[ignored] = num_classes


def stacked(prepared: Sequence[PreparedCase], num_classes: int, sampler: BatchSampler) -> Volumes:
    """The volumes that a sampler's batches are made of; those of several channels are always read as patches."""
    if sampler.middles is not None:
        return WholeVolumes(prepared, num_classes, sampler.shape, sampler.ignores)
    return Volumes(prepared, num_classes, sampler.ignores)


def _signed(ranks: np.ndarray) -> Tensor:
    # int16 with the bits of uint16, which torch can't index or stack on every device
    return torch.from_numpy(ranks.view("int16"))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
