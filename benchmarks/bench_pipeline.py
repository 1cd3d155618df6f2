"""Volumes a second: of augmentation, by whom it is done, and of training end to end."""

import functools
import itertools

import numpy as np
import pytest
import torch

from benchmarks import itk_augmentation, tables
from benchmarks.graph_time import TimedReplays
from benchmarks.measure import CHOICE, DEVICE, ON_GPU, VOLUME, synchronize, time_of
from benchmarks.providers import EAGER, FASTEST, HALF, OurTraining, PlainTraining, Provider
from benchmarks.volumes import new_volumes, training_cases
from vnet_fast.devices import keep_freed_memory
from vnet_fast.ops.augment import augment, augment_definition, augments_by_kernel
from vnet_fast.training.batches import PREFETCH, FromWorkers, Ready, Resident, Streamed
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.read_back import ReadBack
from vnet_fast.training.step import WARM_UP

ROUNDS = 20 if ON_GPU else 3
BATCH = 2 if ON_GPU else 1
# iterations of a run that is timed, and of the one before it: workers' first batches are ready, a graph captured
ITERATIONS = {"tiny": 2, "small": 6, "full": 40 if ON_GPU else 4}[CHOICE]
FIRST = max(PREFETCH, WARM_UP) + 2 if ON_GPU else PREFETCH + 1
RATE = "volumes/s"


# Augmentation


def one_deformed():
    """The choices of a batch of two volumes of which one is deformed: the average batch."""
    draws = BatchSampler(0, 2, len(training_cases()[0]), VOLUME)
    return next(draw for draw in map(draws, itertools.count()) if draw.deformed.sum() == 1)


def by_definition(device):
    """A function that augments a batch by the plain definition."""
    volumes, draw, classes = new_volumes(), one_deformed(), training_cases()[1]
    volumes.send(device)
    cases, others, points = (
        torch.from_numpy(array).to(device) for array in (draw.cases, draw.intensities_of, draw.control_points)
    )

    def run():
        ranks = volumes.ranks[cases].to(torch.int32) & 0xFFFF
        masks, tables_of = volumes.masks[cases], volumes.tables[others]
        return augment_definition(ranks, tables_of, masks, points, draw.deformed, classes)

    return run


def on_one_thread(make):
    """A function that runs as a worker process does."""
    run = make()

    def alone():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return alone


def by_simpleitk():
    """A function that augments a batch by SimpleITK on one thread."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")

    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    draw, (cases, classes) = one_deformed(), training_cases()
    images = [case.image for case in cases]
    masks = [np.minimum(case.mask, 1) if classes == 2 else case.mask for case in cases]

    def run():
        pairs = [
            itk_augmentation.augment(images[case], masks[case], images[other], points, deformed)
            for case, other, points, deformed in zip(
                draw.cases, draw.intensities_of, draw.control_points, draw.deformed, strict=True
            )
        ]
        return tuple(torch.from_numpy(np.stack(arrays))[:, None] for arrays in zip(*pairs, strict=True))

    return run


def by_kernel():
    """A function that augments a batch by the Triton kernel."""
    volumes, draw, classes = new_volumes(), one_deformed(), training_cases()[1]
    volumes.send(DEVICE)
    arrays = draw.cases, draw.intensities_of, draw.deformed, draw.control_points
    choice = [torch.from_numpy(array).to(DEVICE) for array in arrays]
    return lambda: augment(volumes.ranks, volumes.tables, volumes.masks, *choice, classes, FASTEST)


CPU = torch.device("cpu")
AUGMENTATIONS = {
    "SimpleITK, one thread": by_simpleitk,
    "PyTorch, CPU, one thread": functools.partial(on_one_thread, lambda: by_definition(CPU)),
    "PyTorch, CPU, all threads": lambda: by_definition(CPU),
}
if ON_GPU:
    AUGMENTATIONS["PyTorch, GPU"] = lambda: by_definition(DEVICE)
    AUGMENTATIONS["kernel, GPU"] = by_kernel


def check(image, mask):
    """Raises AssertionError if a batch is not the definition's, but for a rougher match of histograms."""
    expected, expected_mask = by_definition(CPU)()
    image, mask = image.cpu().double(), mask.cpu()
    correlation = torch.corrcoef(torch.stack([image.flatten(), expected.double().flatten()]))[0, 1].item()
    assert correlation > 0.9, f"its images correlate with the definition's by {correlation:.3f} only"
    differing = (mask != expected_mask).float().mean().item()
    assert differing < 0.01, f"{100 * differing:.1f} % of its labels are not the definition's"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def bench_augmentation(benchmark, name):
    if name == "kernel, GPU" and not augments_by_kernel(DEVICE):
        pytest.skip("no kernel: Triton is not installed")
    benchmark.group = "augmentation of two volumes, one deformed"
    cells = {"by": name}
    with tables.failure_as_row("augmentation", cells, RATE, ours="kernel" in name):
        run = AUGMENTATIONS[name]()
        check(*run())
        seconds = time_of(benchmark, run, ROUNDS, warm_up=1).median
        cells |= {RATE: 2 / seconds, "a volume, ms": 1e3 * seconds / 2}
        tables.keep(benchmark, "augmentation", cells)


# Training end to end


def ours(source_of, augmented=True):
    """A function of a number of iterations that trains as vnet_fast.train does, and its step and source."""
    draws = BatchSampler(0, BATCH, len(training_cases()[0]), VOLUME, augmented)
    source = source_of(draws)
    training = OurTraining(Provider("vnet_fast", amp=HALF is not None, graph=ON_GPU))
    training.step.prepare = source.prepare
    losses, count = ReadBack(0), itertools.count()

    def run(iterations):
        for _ in range(iterations):
            training.step.set_learning_rate(1e-4)
            losses.add(training.step(*source.inputs(next(count))))
            if losses.full:
                losses.read()

    return run, training.step, source


def resident(draws):
    return _or_ready(Resident(new_volumes(), draws, DEVICE, FASTEST))


def streamed(draws):
    return _or_ready(Streamed(new_volumes(), draws, DEVICE, FASTEST))


def _or_ready(source):
    return Ready(source) if ON_GPU and not augments_by_kernel(DEVICE) else source


def from_worker(draws):
    return FromWorkers(*training_cases(), draws, 0, 10**6, workers=1)


LOOP = EAGER["plain PyTorch, AMP, channels-last" if ON_GPU else "plain PyTorch, float32"]


def plain_loop(device):
    """A function of a number of iterations that trains in plain PyTorch, augmenting on `device` in the loop."""
    training, augment_pair = PlainTraining(LOOP), by_definition(device)

    def run(iterations):
        for _ in range(iterations):
            # two volumes are made; a batch of one takes them in turns
            image, mask = (tensor.to(DEVICE) for tensor in augment_pair())
            for part in range(2 // BATCH):
                training(image[part * BATCH : (part + 1) * BATCH], mask[part * BATCH : (part + 1) * BATCH])

    return run


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


def shown_precision(autocast):
    return str(autocast or torch.float32).removeprefix("torch.")


# volumes a second of ours without augmentation
unaugmented = {}


@pytest.mark.parametrize("name", [*SOURCES, *LOOPS])
def bench_training(benchmark, name):
    benchmark.group = f"training, batch of {BATCH}"
    cells = {"training": name, "batch": BATCH}
    with tables.failure_as_row("training", cells, RATE, ours=name in SOURCES):
        keep_freed_memory(name in SOURCES)
        if name in SOURCES:
            cells |= {"precision": shown_precision(HALF), **_time_ours(benchmark, *SOURCES[name])}
        else:
            cells |= {"precision": shown_precision(LOOP.autocast), **_time_loop(benchmark, LOOPS[name])}
        tables.keep(benchmark, "training", cells)


def _time_ours(benchmark, source_of, augmented):
    run, step, source = ours(source_of, augmented)
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
    run = plain_loop(device)
    run(1)
    synchronize()
    # a turn of the loop trains on two volumes, whatever the batch
    turns = max(1, BATCH * ITERATIONS // 2)
    return {RATE: 2 * turns / time_of(benchmark, lambda: run(turns), 1).median}
