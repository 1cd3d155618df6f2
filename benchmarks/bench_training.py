"""Training end to end, with and without augmentation, in volumes a second."""

import itertools

import pytest
import torch

from benchmarks import tables
from benchmarks.augmentations import CPU, by_definition
from benchmarks.graph_time import TimedReplays
from benchmarks.measure import CHOICE, DEVICE, ON_GPU, SHAPE, synchronize, time_of
from benchmarks.providers import EAGER, FASTEST, HALF, LEARNING_RATE, OurTraining, PlainTraining, Provider
from benchmarks.volumes import new_volumes, training_cases
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.ops.augment import augments_by_kernel
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.read_back import ReadBack
from vnet_fast.training.sources import Ready, Resident, Streamed
from vnet_fast.training.step import WARM_UP
from vnet_fast.training.workers import PREFETCH, FromWorkers

BATCH = 2 if ON_GPU else 1
# iterations that are timed
ITERATIONS = {"tiny": 2, "small": 6, "full": 40 if ON_GPU else 4}[CHOICE]
# iterations before them, in which workers make their first batches and the graph is captured
FIRST = max(PREFETCH, WARM_UP) + 2 if ON_GPU else PREFETCH + 1
RATE = "volumes/s"


def our_training(make_source, augmented=True):
    """A function of a number of iterations that trains as `vnet_fast.train` does.

    Args:
        make_source: makes a source of batches from a BatchSampler.
        augmented: whether the batches are augmented.

    Returns:
        the function, its step and its source.
    """
    source = make_source(BatchSampler(0, BATCH, len(training_cases()[0]), SHAPE, augmented))
    training = OurTraining(Provider("vnet_fast", amp=HALF is not None, graph=ON_GPU))
    training.step.prepare = source.prepare
    losses, iteration = ReadBack(0), itertools.count()

    def run(iterations):
        for _ in range(iterations):
            training.step.set_learning_rate(LEARNING_RATE)
            losses.add(training.step(*source.inputs(next(iteration))), LEARNING_RATE)
            if losses.full:
                losses.read()

    return run, training.step, source


def resident(sampler):
    """Batches of volumes that stay on the device."""
    return _augment_before_step(Resident(new_volumes(), sampler, DEVICE, FASTEST))


def streamed(sampler):
    """Batches of volumes that are copied from the host for each step."""
    return _augment_before_step(Streamed(new_volumes(), sampler, DEVICE, FASTEST))


def _augment_before_step(source):
    """The source, on a GPU without the kernel with augmentation outside the step's graph."""
    return Ready(source) if ON_GPU and not augments_by_kernel(DEVICE) else source


def from_worker(sampler):
    """Batches that one worker process augments."""
    return FromWorkers(*training_cases(), sampler, 0, 10**6, workers=1)


PLAIN_PROVIDER = EAGER["plain PyTorch, AMP, channels-last" if ON_GPU else "plain PyTorch, float32"]


def plain_training(device):
    """A function of a number of iterations that trains in plain PyTorch and augments on a device in the loop."""
    training, augment_pair = PlainTraining(PLAIN_PROVIDER), by_definition(device)

    def run(iterations):
        for _ in range(iterations):
            image, mask = (tensor.to(DEVICE) for tensor in augment_pair())
            # two volumes are augmented together, also for batches of one
            for batch_image, batch_mask in zip(image.split(BATCH), mask.split(BATCH), strict=True):
                training(batch_image, batch_mask)

    return run


# (source of batches, whether they are augmented)
if ON_GPU:
    SOURCES = {
        "vnet_fast, volumes on the GPU, not augmented": (resident, False),
        "vnet_fast, volumes on the GPU, augmented in the step": (resident, True),
        "vnet_fast, volumes streamed from the host, augmented in the step": (streamed, True),
    }
else:
    SOURCES = {
        "vnet_fast, not augmented": (resident, False),
        "vnet_fast, augmented in the step": (resident, True),
        "vnet_fast, augmented by one worker": (from_worker, True),
    }
LOOPS = {"plain PyTorch loop, augmented on the CPU": CPU}
if ON_GPU:
    LOOPS["plain PyTorch loop, augmented on the GPU"] = DEVICE


# volumes/s of vnet_fast without augmentation
unaugmented = {}


@pytest.mark.parametrize("name", [*SOURCES, *LOOPS])
def bench_training(benchmark, name):
    """Times training iterations from the choice of the batch to the update of the weights."""
    benchmark.group = f"training, batch of {BATCH}"
    ours = name in SOURCES
    autocast = HALF if ours else PLAIN_PROVIDER.autocast
    cells = {"training": name, "batch": BATCH}
    with tables.failure_as_row("training", cells, RATE, ours):
        keep_freed_memory(ours)
        rates = _time_ours(benchmark, *SOURCES[name]) if ours else _time_loop(benchmark, LOOPS[name])
        cells |= {"precision": str(autocast or torch.float32).removeprefix("torch."), **rates}
        tables.keep(benchmark, "training", cells)


def _time_ours(benchmark, make_source, augmented):
    run, step, source = our_training(make_source, augmented)
    try:
        run(FIRST)
        synchronize()
        replays = TimedReplays(step) if step.captured else None
        seconds = time_of(benchmark, lambda: run(ITERATIONS), 1).median
    finally:
        source.close()
    rate = BATCH * ITERATIONS / seconds
    if not augmented:
        unaugmented["rate"] = rate
    cells = {RATE: rate}
    if unaugmented:
        cells["share of the rate without augmentation, %"] = 100 * rate / unaugmented["rate"]
    if ON_GPU:
        cells["outside the graph, %"] = None if replays is None else 100 * (1 - replays.seconds() / seconds)
    return cells


def _time_loop(benchmark, device):
    run = plain_training(device)
    run(1)
    synchronize()
    # an iteration of the loop trains on two volumes, for every batch size
    iterations = max(1, BATCH * ITERATIONS // 2)
    return {RATE: 2 * iterations / time_of(benchmark, lambda: run(iterations), 1).median}
