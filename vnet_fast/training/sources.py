"""Sources of training batches: where the volumes are kept, and how the parameters of an iteration reach the step."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vnet_fast.data.preparation import IGNORED, PreparedCase
from vnet_fast.ops.augment import augment
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform
from vnet_fast.training.draws import BatchSampler


class Source(Protocol):
    """Where training batches come from.

    Attributes:
        description: for the log.
    """

    description: str

    @property
    def prepare(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """Makes (image, target) of the inputs within the step, and so within its CUDA graph; None if the inputs are
        image and target already.
        """

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """The tensors of an iteration, on the device."""

    def close(self) -> None:
        """Ends what the source has started."""


class Volumes:
    """Prepared cases as tensors, with a first axis for the case.

    Args:
        prepared: the cases, all of one shape.
        num_classes: background included; 2 makes all labels above 0 one class.
        ignores: whether masks have voxels that do not count. They have the label after the last class.
    """

    def __init__(self, prepared: Sequence[PreparedCase], num_classes: int, ignores: bool = False) -> None:
        self.ranks = self._joined([_signed(case.ranks) for case in prepared])
        self.masks = self._joined([torch.from_numpy(case.mask) for case in prepared])
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared])
        ignored = self.masks == IGNORED if ignores else None
        if num_classes == 2:
            self.masks.clamp_(max=1)
        if ignored is not None:
            self.masks[ignored] = num_classes
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

    def __init__(
        self, prepared: Sequence[PreparedCase], num_classes: int, shape: tuple[int, int, int], ignores: bool = False
    ) -> None:
        super().__init__(prepared, num_classes, ignores)
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
        stored = (self.ranks, self.channels), (self.masks, 1)
        ranks, masks = (
            torch.empty(len(cases) * self.longest * channels, dtype=tensor.dtype, device=device)
            for tensor, channels in stored
        )
        for number, (first, *shape) in enumerate(places.tolist()):
            length, start = shape[0] * shape[1] * shape[2], number * self.longest
            for target, (source, channels) in zip((ranks, masks), stored, strict=True):
                part = source[channels * first : channels * (first + length)]
                target[channels * start : channels * (start + length)].copy_(part, non_blocking=True)
        places[:, 0] = torch.arange(len(cases)) * self.longest
        return ranks, self._copied(self.tables, intensities_of, device), masks, send(places, device)

    def augmented(self, stored: Sequence[Tensor], batch: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Image and mask of patches; as that of Volumes."""
        cases, intensities_of, deformed, control_points, transforms = batch
        choices = cases, intensities_of, deformed, control_points, transforms
        ranks, tables, masks, places = stored
        return patches(
            ranks, tables.view(-1, tables.shape[-1]), masks, places, *choices, self.shape, self.num_classes, dtype
        )


def stacked(prepared: Sequence[PreparedCase], num_classes: int, sampler: BatchSampler) -> Volumes:
    """The volumes that a sampler's batches are made of; those of several channels are always read as patches."""
    if sampler.middles is not None:
        return WholeVolumes(prepared, num_classes, sampler.shape, sampler.ignores)
    return Volumes(prepared, num_classes, sampler.ignores)


def _signed(ranks: np.ndarray) -> Tensor:
    # int16 with the bits of uint16, which torch can't index or stack on every device
    return torch.from_numpy(ranks.view("int16"))


class Resident:
    """Volumes that stay on the device. An iteration sends only its parameters, a few kilobytes.

    Args:
        volumes: are moved to `device`.
        sampler: of the batches' parameters.
        device: where batches are made.
        dtype: of the images.
    """

    def __init__(
        self, volumes: Volumes, sampler: BatchSampler, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        volumes.send(device)
        self.volumes, self.sampler, self.device, self.dtype = volumes, sampler, device, dtype
        self.description = f"{len(volumes)} volumes, {volumes.nbytes / 1e6:.0f} MB"
        self.description += " on the GPU" if device.type == "cuda" else " in memory"

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """The arrays of `training.draws.BatchParameters`."""
        return tuple(send(torch.from_numpy(array), self.device) for array in self.sampler(iteration).arrays)

    def prepare(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, 1, D, H, W) in `dtype` and mask (N, 1, D, H, W) uint8."""
        return self.volumes.augmented(self.volumes.stored, parameters, self.dtype)

    def close(self) -> None:
        """Does nothing."""


class Streamed:
    """Volumes that stay in the host's pinned memory. Those of a batch are copied while the step before it runs.

    Arguments and batches are those of Resident.
    """

    def __init__(
        self, volumes: Volumes, sampler: BatchSampler, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.stream = None
        if device.type == "cuda":
            volumes.pin()
            self.stream = torch.cuda.Stream(device)
        self.volumes, self.sampler, self.device, self.dtype = volumes, sampler, device, dtype
        self.fetched: tuple[int | None, tuple[Tensor, ...]] = None, ()
        self.description = f"{len(volumes)} volumes, {volumes.nbytes / 1e6:.0f} MB streamed from pinned memory"

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """`Volumes.stored` of the batch's volumes, their numbers, and the other arrays of `Resident.inputs`."""
        fetched_iteration, tensors = self.fetched
        if fetched_iteration != iteration:
            tensors = self._fetch(iteration)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in tensors:
                tensor.record_stream(current)
        self.fetched = iteration + 1, self._fetch(iteration + 1)
        return tensors

    def _fetch(self, iteration: int) -> tuple[Tensor, ...]:
        batch = self.sampler(iteration)
        _, _, *others = batch.arrays
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            return (
                *self.volumes.gathered(batch.cases, batch.intensities_of, self.device),
                torch.arange(len(batch.cases), device=self.device),
                *(send(torch.from_numpy(array), self.device) for array in others),
            )

    def prepare(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Image and mask, as `Resident.prepare`."""
        count = len(self.volumes.stored)
        stored, (indices, *others) = tensors[:count], tensors[count:]
        return self.volumes.augmented(stored, (indices, indices, *others), self.dtype)

    def close(self) -> None:
        """Does nothing."""


class Ready:
    """Batches of another source, made before the step because a CUDA graph can't hold their making.

    Args:
        source: the other source.
    """

    prepare = None

    def __init__(self, source: Resident | Streamed) -> None:
        self.source = source
        self.description = source.description

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """(image, mask)."""
        return self.source.prepare(*self.source.inputs(iteration))

    def close(self) -> None:
        """Closes the other source."""
        self.source.close()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
