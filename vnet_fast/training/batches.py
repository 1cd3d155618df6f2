"""What a training run's batches are drawn by, and the source that makes them."""

import torch

from vnet_fast.data.training_data import Data
from vnet_fast.devices import HOST
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.ops.augment import augments_by_kernel
from vnet_fast.ops.patches import patches_by_kernel
from vnet_fast.ops.transform import transforms_by_kernel
from vnet_fast.run.configuration import Config
from vnet_fast.run.memory import memory_of
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.patches import Middles
from vnet_fast.training.sources import Ready, Resident, Sent, Source, Streamed
from vnet_fast.training.volumes import SeparateVolumes, stacked
from vnet_fast.training.workers import FromWorkers

# of the free memory of a GPU; the rest is for weights, activations and the graph
RESIDENT_SHARE = 0.25
# of the memory of the host, which the cases may have a second time
HOST_SHARE = 0.25


def _bytes_of(data: Data) -> int:
    return sum(case.ranks.nbytes + case.mask.nbytes for case in data.training)


def _check_workers(data: Data, workers: int) -> None:
    """Raises an InputError if not every worker can hold all cases."""
    needed, memory = _bytes_of(data) * workers, memory_of(HOST)
    if needed > memory:
        cause = f"each of {workers} holds all volumes, {needed / 1e9:.1f} GB together, and there are {memory / 1e9:.1f}"
        raise InputError("--workers", cause, "Leave it out")


def make_sampler(config: Config, data: Data, processes: Processes) -> BatchSampler:
    """The sampler of a process's part of a run's batches."""
    channels, ignores = len(data.channels), data.ignored is not None
    return BatchSampler(
        config.seed,
        config.batch_size,
        len(data.training),
        config.shape,
        not config.no_augment,
        processes.rank,
        processes.count,
        augmentation=config,
        spacing=config.spacing,
        # one kernel reads patches and channels, so that a centre of several channels is a patch without room
        middles=Middles.of(data.training, data.num_classes, ignores) if data.patches or channels > 1 else None,
        channels=channels,
        ignores=ignores,
    )


def make_source(
    data: Data, sampler: BatchSampler, device: torch.device, dtype: torch.dtype, iterations: range, workers: int = 0
) -> Source:
    """The source of a training run's batches that suits the device and the size of the volumes.

    Args:
        data: of the run; its training cases have one shape, unless they are whole.
        sampler: of the batches' parameters.
        device: where the network trains.
        dtype: of the images on a GPU; on a CPU they are float32.
        iterations: of the run.
        workers: processes that augment ahead of the step, on a CPU; 0 augments within the step.
    """
    if device.type not in ("cpu", "cuda"):
        return Sent(make_source(data, sampler, HOST, dtype, iterations, workers), device)
    if device.type != "cuda":
        if workers:
            _check_workers(data, workers)
            return FromWorkers(data.training, data.num_classes, sampler, iterations.start, iterations.stop, workers)
        if sampler.middles is not None and _bytes_of(data) > HOST_SHARE * memory_of(device):
            separate = SeparateVolumes(data.training, data.num_classes, sampler.shape, sampler.ignores)
            return Streamed(separate, sampler, device)
        return Resident(stacked(data.training, data.num_classes, sampler), sampler, device)
    volumes = stacked(data.training, data.num_classes, sampler)
    fits = volumes.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    source = (Resident if fits else Streamed)(volumes, sampler, device, dtype)
    by_kernel = transforms_by_kernel if sampler.transforms else augments_by_kernel
    if sampler.middles is not None:
        by_kernel = patches_by_kernel
    return source if by_kernel(device) else Ready(source)
