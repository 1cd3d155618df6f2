"""Sources of training batches: where the volumes are kept, and how the parameters of an iteration reach the step."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vnet_fast.data.preparation import PreparedCase
from vnet_fast.ops.augment import augment
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
    """

    def __init__(self, prepared: Sequence[PreparedCase], num_classes: int) -> None:
        # int16 with the bits of uint16, which torch can't index or stack on every device
        self.ranks = torch.stack([torch.from_numpy(case.ranks.view("int16")) for case in prepared])
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared])
        self.masks = torch.stack([torch.from_numpy(case.mask) for case in prepared])
        if num_classes == 2:
            self.masks.clamp_(max=1)
        self.num_classes = num_classes

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.ranks.nbytes + self.tables.nbytes + self.masks.nbytes

    def __len__(self) -> int:
        return len(self.ranks)

    def pin(self) -> None:
        """Moves them to pinned memory, which a GPU reads directly."""
        self.ranks, self.tables, self.masks = (t.pin_memory() for t in (self.ranks, self.tables, self.masks))

    def send(self, device: torch.device) -> None:
        """Moves them to a device."""
        self.ranks, self.tables, self.masks = (t.to(device) for t in (self.ranks, self.tables, self.masks))


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
        return tuple(_send(torch.from_numpy(array), self.device) for array in self.sampler(iteration).arrays)

    def prepare(self, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Image (N, 1, D, H, W) in `dtype` and mask (N, 1, D, H, W) uint8."""
        v = self.volumes
        return _augmented((v.ranks, v.tables, v.masks), parameters, v.num_classes, self.dtype)

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
        """(ranks, tables, masks) of the batch's volumes, their numbers, and the other arrays of `Resident.inputs`."""
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
                self._gather(self.volumes.ranks, batch.cases),
                self._gather(self.volumes.tables, batch.intensities_of),
                self._gather(self.volumes.masks, batch.cases),
                torch.arange(len(batch.cases), device=self.device),
                *(_send(torch.from_numpy(array), self.device) for array in others),
            )

    def _gather(self, volumes: Tensor, cases: np.ndarray) -> Tensor:
        batch = torch.empty((len(cases), *volumes.shape[1:]), dtype=volumes.dtype, device=self.device)
        for volume, case in zip(batch, cases, strict=True):
            volume.copy_(volumes[case], non_blocking=True)
        return batch

    def prepare(
        self, ranks: Tensor, tables: Tensor, masks: Tensor, indices: Tensor, *others: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Image and mask, as `Resident.prepare`."""
        classes = self.volumes.num_classes
        return _augmented((ranks, tables, masks), (indices, indices, *others), classes, self.dtype)

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


def _augmented(
    stored: tuple[Tensor, Tensor, Tensor], batch: tuple[Tensor, ...], num_classes: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Image and mask, of ranks, tables and masks, and the arrays of `training.draws.BatchParameters`."""
    cases, intensities_of, deformed, control_points, *transforms = batch
    choices = cases, intensities_of, deformed, control_points
    if transforms:
        return transform(*stored, *choices, transforms[0], num_classes, dtype)
    return augment(*stored, *choices, num_classes, dtype)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to the device without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
