"""Batches that other processes make ahead of the step, on a CPU."""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vnet_fast.data.preparation import PreparedCase
from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.sources import Ready, Resident
from vnet_fast.training.volumes import stacked

# batches that a worker prepares ahead
PREFETCH = 2
# seconds after SIGTERM that a worker leaves its parent, which received it too, to finish its step
GRACE = 600


class FromWorkers:
    """Batches that other processes make ahead of the step, each on one thread.

    Args:
        prepared: the cases.
        num_classes: background included.
        sampler: of the batches' parameters.
        first: the first iteration.
        end: the iteration after the last one.
        workers: how many processes.

    Raises:
        InputError: from `inputs`, if a worker can't make a batch.
        RuntimeError: at any time, if a worker dies, see `is_worker_death`.
    """

    prepare = None

    def __init__(
        self,
        prepared: Sequence[PreparedCase],
        num_classes: int,
        sampler: BatchSampler,
        first: int,
        end: int,
        workers: int,
    ) -> None:
        loader: DataLoader[Any] = DataLoader(
            _Iterations(prepared, num_classes, sampler),
            batch_size=None,
            sampler=range(first, end),
            num_workers=workers,
            # arrays travel through pipes: containers have little shared memory
            collate_fn=_return_unchanged,
            multiprocessing_context="spawn",
            prefetch_factor=PREFETCH,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self.batches: Any = iter(loader)
        self.next = first
        megabytes = sum(case.ranks.nbytes + case.table.nbytes + case.mask.nbytes for case in prepared) / 1e6
        processes = "a process" if workers == 1 else f"{workers} processes"
        self.description = (
            f"{len(prepared)} volumes, {megabytes:.0f} MB in memory, augmented by {processes} ahead of the step"
        )

    def inputs(self, iteration: int) -> tuple[Tensor, ...]:
        """(image, mask). Iterations must be asked for in their order."""
        if iteration != self.next:
            raise ValueError(f"iteration must be {self.next}, the next in order; got {iteration}")
        self.next += 1
        batch = next(self.batches)
        if isinstance(batch, InputError):
            raise batch
        return tuple(torch.from_numpy(array) for array in batch)

    def close(self) -> None:
        """Ends the processes."""
        self.batches = None


class _Iterations(Dataset[Any]):
    """Makes the batch of an iteration, in a worker."""

    def __init__(self, prepared: Sequence[PreparedCase], num_classes: int, sampler: BatchSampler) -> None:
        self.prepared, self.num_classes, self.sampler = prepared, num_classes, sampler
        self.source: Ready | None = None

    def __getitem__(self, iteration: int) -> tuple[np.ndarray, ...] | InputError:
        if self.source is None:
            # made once, in the worker
            self.source = Ready(Resident(stacked(self.prepared, self.num_classes, self.sampler), self.sampler, HOST))
        try:
            return tuple(tensor.numpy() for tensor in self.source.inputs(iteration))
        except (RuntimeError, IndexError, ValueError) as error:
            names = ", ".join(dict.fromkeys(self.prepared[case].name for case in self.sampler(iteration).cases))
            # returned rather than raised, because the loader would wrap it in a traceback
            remedy = "Take them out, or prepare them again with another --cache"
            return InputError(names, f"can't be augmented ({error})", remedy)


def is_worker_death(error: BaseException) -> bool:
    """Whether an exception says that a worker has died. PyTorch raises it wherever the parent is at that moment."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _return_unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C and job managers signal every process. The parent finishes its step and then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
