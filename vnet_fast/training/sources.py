"""Sources of training batches: where the volumes are kept, and how the parameters of an iteration reach the step."""

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.volumes import Volumes, send


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
    """Volumes that stay in the host's pinned memory, or for a CPU in the cache's entries. Those of a batch are copied,
    on a GPU while the step before it runs.

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
        where = "pinned memory" if device.type == "cuda" else "the cache"
        self.description = f"{len(volumes)} volumes, {volumes.nbytes / 1e6:.0f} MB streamed from {where}"

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
        stored, (indices, *others) = tensors[: self.volumes.count], tensors[self.volumes.count :]
        return self.volumes.augmented(stored, (indices, indices, *others), self.dtype)

    def close(self) -> None:
        """Does nothing."""


class Sent:
    """Batches of another source, made on the host and sent to a device where neither kernels nor float64 run.

    Args:
        source: the other source, whose batches are on the host.
        device: where the network trains.
    """

    prepare = None

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source, self.device = source, device
        self.description = source.description

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """(image, mask)."""
        inputs = self.source.inputs(iteration)
        if self.source.prepare is not None:
            inputs = self.source.prepare(*inputs)
        return tuple(tensor.to(self.device) for tensor in inputs)

    def close(self) -> None:
        """Closes the other source."""
        self.source.close()


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
