"""What a training run's batches are drawn by, and the source that makes them."""

import torch

from vnet_fast.data.training_data import Data
from vnet_fast.distributed import Processes
from vnet_fast.ops.augment import augments_by_kernel
from vnet_fast.ops.patches import patches_by_kernel
from vnet_fast.ops.transform import transforms_by_kernel
from vnet_fast.run.configuration import Config
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.patches import Middles
from vnet_fast.training.sources import Ready, Resident, Source, Streamed, stacked
from vnet_fast.training.workers import FromWorkers

# of the free memory of a GPU; the rest is for weights, activations and the graph
RESIDENT_SHARE = 0.25


def make_sampler(config: Config, data: Data, processes: Processes) -> BatchSampler:
    """The sampler of a process's part of a run's batches."""
    channels = len(data.channels)
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
        middles=Middles.of(data.training, data.num_classes) if data.patches or channels > 1 else None,
        channels=channels,
        ignores=data.ignored is not None,
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
    if device.type != "cuda":
        if workers:
            return FromWorkers(data.training, data.num_classes, sampler, iterations.start, iterations.stop, workers)
        return Resident(stacked(data.training, data.num_classes, sampler), sampler, device)
    volumes = stacked(data.training, data.num_classes, sampler)
    fits = volumes.nbytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
    source = (Resident if fits else Streamed)(volumes, sampler, device, dtype)
    by_kernel = transforms_by_kernel if sampler.transforms else augments_by_kernel
    if sampler.middles is not None:
        by_kernel = patches_by_kernel
    return source if by_kernel(device) else Ready(source)
