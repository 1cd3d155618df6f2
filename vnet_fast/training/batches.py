"""Training batches: where the volumes are kept, and how the choices of an iteration reach the step.

A source has `inputs(iteration)`, the tensors of an iteration on the device; `prepare(*inputs)`, which
makes image and mask of them within the step, and with it in its CUDA graph, or None where the inputs
are image and mask already; `words` for the log; and `close()`.
"""

import contextlib
import signal

import torch
from torch.utils.data import DataLoader, Dataset

from vnet_fast.errors import InputError
from vnet_fast.ops.augment import augment, augments_by_kernel

# the rest is for weights, activations and the graph
RESIDENT_SHARE = 0.25
# batches that a worker has ready: one is being trained on, one waits
PREFETCH = 2
# seconds that a worker told to end leaves the parent, told so too, to finish its step
GRACE = 600


class Volumes:
    """Prepared cases as tensors, one axis in front for the case.

    Args:
        prepared: list of `cache.PreparedCase`, all of one size.
        num_classes: background included; 2 makes all labels above 0 one class.
    """

    def __init__(self, prepared, num_classes):
        # the bits of uint16, which torch can't index or stack on every device
        self.ranks = torch.stack([torch.from_numpy(case.ranks.view("int16")) for case in prepared])
        self.tables = torch.stack([torch.from_numpy(case.table) for case in prepared])
        self.masks = torch.stack([torch.from_numpy(case.mask) for case in prepared])
        if num_classes == 2:
            self.masks.clamp_(max=1)
        self.num_classes = num_classes

    @property
    def nbytes(self):
        return self.ranks.nbytes + self.tables.nbytes + self.masks.nbytes

    def __len__(self):
        return len(self.ranks)

    def pin(self):
        """Moves them to memory that a GPU reads by itself."""
        self.ranks, self.tables, self.masks = (t.pin_memory() for t in (self.ranks, self.tables, self.masks))

    def send(self, device):
        """Moves them to a device."""
        self.ranks, self.tables, self.masks = (t.to(device) for t in (self.ranks, self.tables, self.masks))


class Resident:
    """Volumes kept on the device; an iteration brings only its choices, a few kilobytes.

    Args:
        volumes: Volumes, moved to `device`.
        draws: `training.draws.BatchSampler`.
        device: where batches are made.
        dtype: of the images.
    """

    def __init__(self, volumes, draws, device, dtype=torch.float32):
        volumes.send(device)
        self.volumes, self.draws, self.device, self.dtype = volumes, draws, device, dtype
        self.description = f"{len(volumes)} volumes, {volumes.nbytes / 1e6:.0f} MB"
        self.description += " on the GPU" if device.type == "cuda" else " in memory"

    def inputs(self, iteration):
        """(cases, intensities_of, deformed, control_points), see `training.draws.BatchParameters`."""
        choice = self.draws(iteration)
        arrays = choice.cases, choice.intensities_of, choice.deformed, choice.control_points
        return tuple(_sent(torch.from_numpy(array), self.device) for array in arrays)

    def prepare(self, cases, intensities_of, deformed, control_points):
        """Image (N, 1, D, H, W) in `dtype` and mask (N, 1, D, H, W) uint8."""
        v = self.volumes
        return augment(
            v.ranks, v.tables, v.masks, cases, intensities_of, deformed, control_points, v.num_classes, self.dtype
        )

    def close(self):
        pass


class Streamed:
    """Volumes kept in the host's pinned memory, each batch's copied while the step before runs.

    Args and batches are those of Resident.
    """

    def __init__(self, volumes, draws, device, dtype=torch.float32):
        self.stream = None
        if device.type == "cuda":
            volumes.pin()
            self.stream = torch.cuda.Stream(device)
        self.volumes, self.draws, self.device, self.dtype = volumes, draws, device, dtype
        self.fetched = None, None
        self.description = f"{len(volumes)} volumes, {volumes.nbytes / 1e6:.0f} MB streamed from pinned memory"

    def inputs(self, iteration):
        """(ranks, tables, masks, places, deformed, control_points); of the batch's volumes only."""
        at, tensors = self.fetched
        if at != iteration:
            tensors = self._fetch(iteration)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in tensors:
                tensor.record_stream(current)
        self.fetched = iteration + 1, self._fetch(iteration + 1)
        return tensors

    def _fetch(self, iteration):
        choice = self.draws(iteration)
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            return (
                self._gathered(self.volumes.ranks, choice.cases),
                self._gathered(self.volumes.tables, choice.intensities_of),
                self._gathered(self.volumes.masks, choice.cases),
                torch.arange(len(choice.cases), device=self.device),
                _sent(torch.from_numpy(choice.deformed), self.device),
                _sent(torch.from_numpy(choice.control_points), self.device),
            )

    def _gathered(self, volumes, cases):
        batch = torch.empty((len(cases), *volumes.shape[1:]), dtype=volumes.dtype, device=self.device)
        for place, case in zip(batch, cases, strict=True):
            place.copy_(volumes[case], non_blocking=True)
        return batch

    def prepare(self, ranks, tables, masks, places, deformed, control_points):
        """As `Resident.prepare`."""
        classes = self.volumes.num_classes
        return augment(ranks, tables, masks, places, places, deformed, control_points, classes, self.dtype)

    def close(self):
        pass


class Ready:
    """Batches of another source, made before the step: where a CUDA graph can't hold the making.

    Args:
        source: the other one.
    """

    prepare = None

    def __init__(self, source):
        self.source = source
        self.description = source.description

    def inputs(self, iteration):
        """(image, mask)."""
        return self.source.prepare(*self.source.inputs(iteration))

    def close(self):
        self.source.close()


class FromWorkers:
    """Batches made ahead of the step by other processes, each on one thread.

    Args:
        prepared: list of `cache.PreparedCase`.
        num_classes: background included.
        draws: `training.draws.BatchSampler`.
        first: the first iteration.
        end: the one after the last.
        workers: how many processes.

    Raises:
        InputError: from `inputs`, if a worker can't make a batch.
        RuntimeError: at any time, if a worker dies, see `is_worker_death`.
    """

    prepare = None

    def __init__(self, prepared, num_classes, draws, first, end, workers):
        loader = DataLoader(
            _Iterations(prepared, num_classes, draws),
            batch_size=None,
            sampler=range(first, end),
            num_workers=workers,
            # arrays travel through pipes: containers have little shared memory
            collate_fn=_unchanged,
            multiprocessing_context="spawn",
            prefetch_factor=PREFETCH,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self.batches, self.next = iter(loader), first
        megabytes = sum(case.ranks.nbytes + case.table.nbytes + case.mask.nbytes for case in prepared) / 1e6
        processes = "a process" if workers == 1 else f"{workers} processes"
        self.description = (
            f"{len(prepared)} volumes, {megabytes:.0f} MB in memory, augmented by {processes} ahead of the step"
        )

    def inputs(self, iteration):
        """(image, mask); iterations must be asked for in their order."""
        if iteration != self.next:
            raise ValueError(f"iteration must be {self.next}, the next in order; got {iteration}")
        self.next += 1
        batch = next(self.batches)
        if isinstance(batch, InputError):
            raise batch
        return tuple(torch.from_numpy(array) for array in batch)

    def close(self):
        # ends the processes
        self.batches = None


class _Iterations(Dataset):
    """From iteration to batch, in a worker."""

    def __init__(self, prepared, num_classes, draws):
        self.prepared, self.num_classes, self.draws = prepared, num_classes, draws
        self.source = None

    def __getitem__(self, iteration):
        if self.source is None:
            # in the worker, once
            self.source = Ready(Resident(Volumes(self.prepared, self.num_classes), self.draws, torch.device("cpu")))
        try:
            return tuple(tensor.numpy() for tensor in self.source.inputs(iteration))
        except (RuntimeError, IndexError, ValueError) as error:
            names = ", ".join(dict.fromkeys(self.prepared[case].name for case in self.draws(iteration).cases))
            # returned, since the loader would wrap it in a traceback
            return InputError(
                names, f"can't be augmented ({error})", "Take them out, or prepare them anew with --cache"
            )


def is_worker_death(error):
    """Whether an exception is PyTorch's for a worker that is no more, which it raises wherever the parent is."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def _unchanged(batch):
    return batch


def _leave_signals_to_the_parent(_):
    # Ctrl-C and job managers signal every process; the parent finishes its step, then ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


def _sent(tensor, device):
    """A tensor on the device, not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def make_source(prepared, num_classes, draws, device, dtype, first, end, workers=0):
    """The source of a training run's batches, by what the device and the volumes' size allow.

    Args:
        prepared: list of `cache.PreparedCase`, all of one size.
        num_classes: background included.
        draws: `training.draws.BatchSampler`.
        device: where the network trains.
        dtype: of the images.
        first: the first iteration.
        end: the one after the last.
        workers: processes that augment ahead of the step, on a CPU; 0 augments within it.

    Returns:
        one of the sources above.
    """
    if device.type != "cuda":
        if workers:
            return FromWorkers(prepared, num_classes, draws, first, end, workers)
        return Resident(Volumes(prepared, num_classes), draws, device)
    volumes = Volumes(prepared, num_classes)
    fits = volumes.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    source = (Resident if fits else Streamed)(volumes, draws, device, dtype)
    return source if augments_by_kernel(device) else Ready(source)
