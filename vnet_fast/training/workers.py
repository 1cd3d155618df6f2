"""Batches that other processes make ahead of the step, on a CPU."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

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
# what a script needs that workers run again
GUARD = "train below `if __name__ == '__main__':`"


def check_not_starting() -> None:
    """Ends a process that trains while it starts, as a worker does that runs a script without a guard again.

    It exits, because the script may catch what is raised.
    """
    # what multiprocessing asks before it starts a process
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(f"error: a process that starts runs this script again. In a script, {GUARD}")


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
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(workers)]
        loader: DataLoader[Any] = DataLoader(
            _Iterations([reader for reader, _ in pipes]),
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
        for reader, _ in pipes:
            # so that who writes notices that no process reads any more
            reader.close()
        content = prepared, num_classes, sampler
        threading.Thread(target=_send, args=([writer for _, writer in pipes], content), daemon=True).start()
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
    """Makes the batch of an iteration, in a worker.

    The cases come through a pipe once the worker runs. Python would send them while it starts the worker, and wait
    forever if that ends first.

    Args:
        readers: the pipe of each worker.
    """

    prepared: Sequence[PreparedCase]
    sampler: BatchSampler

    def __init__(self, readers: Sequence[Connection]) -> None:
        self.readers = readers
        self.source: Ready | None = None

    def __getitem__(self, iteration: int) -> tuple[np.ndarray, ...] | InputError:
        if self.source is None:
            # made once, in the worker
            number = get_worker_info().id  # type: ignore[union-attr]  # not None in a worker
            with open(os.dup(self.readers[number].fileno()), "rb") as pipe:
                self.prepared, num_classes, self.sampler = pickle.load(pipe)
            self.source = Ready(Resident(stacked(self.prepared, num_classes, self.sampler), self.sampler, HOST))
        try:
            return tuple(tensor.numpy() for tensor in self.source.inputs(iteration))
        except (RuntimeError, IndexError, ValueError) as error:
            names = ", ".join(dict.fromkeys(self.prepared[case].name for case in self.sampler(iteration).cases))
            # returned rather than raised, because the loader would wrap it in a traceback
            remedy = "Take them out, or prepare them again with another --cache"
            return InputError(names, f"can't be augmented ({error})", remedy)


def _send(writers: Sequence[Connection], content: object) -> None:
    """Sends workers what they need, one after the other."""
    for writer in writers:
        # a worker that has ended is noticed where its batch is missing
        with writer, contextlib.suppress(BrokenPipeError), open(os.dup(writer.fileno()), "wb") as pipe:
            pickle.dump(content, pipe, protocol=pickle.HIGHEST_PROTOCOL)


def is_worker_death(error: BaseException) -> bool:
    """Whether an exception says that a worker has died. PyTorch raises it wherever the parent is at that moment."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _return_unchanged(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_parent(_: int) -> None:
    # Ctrl-C and job managers signal every process. The parent finishes its step and then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
