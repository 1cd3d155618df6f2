"""A training step (forward, loss, backward, update) on a fixed batch: ours, plain PyTorch, MONAI's and others'.

Before each round of a provider the baseline runs once: the ratio of both is of the same minutes.
"""

import functools
import gc
import math

import pytest
import torch

from benchmarks import tables
from benchmarks.ceilings import ceilings_of
from benchmarks.floor import floor_of
from benchmarks.measure import NETWORK_ROUNDS, ON_GPU, SHAPE, synchronize, time_of
from benchmarks.parts import step_by_parts
from benchmarks.providers import (
    BASELINE,
    COMPILED_ON_CPU,
    EAGER,
    FASTEST,
    GRAPH,
    Beside,
    Provider,
    check_logits,
    fixed_batch,
    limit_cells,
    meta_model,
    training_of,
)
from vnet_fast.host_memory import keep_freed_memory

BATCHES = (1, 2, 4) if ON_GPU else (1,)
if ON_GPU:
    EAGER = {**EAGER, **GRAPH}
    COMPILED = {
        f"plain PyTorch, AMP, channels-last, torch.compile {mode}": Provider(
            "plain", amp=True, channels_last=True, compiled=mode
        )
        for mode in ("default", "max-autotune")
    }
else:
    COMPILED = COMPILED_ON_CPU
# compiled networks for one batch size only, because a compiler takes a minute or two for every shape
MEASURED = [(batch, name) for batch in BATCHES for name in EAGER] + [(min(BATCHES[-1], 2), name) for name in COMPILED]
# iterations after the first one until a step takes its final time: our graph is captured in the fourth, and on a CPU
# only the first one differs
WARM_UP = 4 if ON_GPU else 1
TIME = "step, ms"


@functools.cache
def baseline(batch):
    """A function of no arguments that makes a step of the baseline, after its first one."""
    image, target = fixed_batch(batch)
    training = training_of(EAGER[BASELINE])
    training(image, target)
    return lambda: training(image, target)


@functools.cache
def floor(network, batch):
    """The Floor of a network for a batch size."""
    return floor_of(meta_model(network), (batch, 1, *SHAPE), FASTEST, ceilings_of(FASTEST))


@pytest.mark.parametrize(("batch", "name"), MEASURED)
def bench_step(benchmark, batch, name):
    """Checks and times a provider's step, and divides its time by parts."""
    provider = {**EAGER, **COMPILED}[name]
    provider.require()
    benchmark.group = f"step, batch of {batch}"
    cells = {"batch": batch, "provider": name}
    beside = Beside(None if name == BASELINE else functools.partial(baseline, batch))
    with tables.failure_as_row("step", cells, TIME, provider.ours):
        memory, stats, seconds = measured(benchmark, provider, batch, beside)
        least = floor(provider.network, batch).step
        cells |= {
            TIME: 1e3 * stats.median,
            "quartiles, ms": f"{tables.shown(1e3 * stats.q1)} to {tables.shown(1e3 * stats.q3)}",
            "volumes/s": batch / stats.median,
            "memory, GB": memory,
            **limit_cells(provider, stats.median, least),
            "times plain float32": beside.ratio(stats.median, 0),
        }
        tables.keep(benchmark, "step", cells, parts={part: 1e3 * value for part, value in seconds.items()})


def measured(benchmark, provider, batch, beside):
    """Checks a provider, then times it.

    Args:
        benchmark: pytest-benchmark's fixture.
        provider: that is measured.
        batch: the number of volumes.
        beside: what runs before each round.

    Returns:
        GB at the peak of a step, statistics of its seconds, and the seconds of its parts.
    """
    # ours runs as the verbs do, the others run as PyTorch's defaults are
    keep_freed_memory(provider.ours)
    image, target = fixed_batch(batch)
    before = _used_memory()
    training = training_of(provider)
    logits = training.first(image, target)
    check_logits(provider, logits)
    del logits
    if ON_GPU:
        # cuDNN tries its algorithms in the first iteration only, and takes much memory for it
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        loss = training(image, target)
    loss = loss.item()
    assert not provider.graph or training.step.captured, f"it is no graph: {training.step.refusal}"
    assert math.isfinite(loss), f"its loss after a step is {loss}"
    memory = (torch.cuda.max_memory_allocated() - before) / 1e9 if ON_GPU else None

    def step():
        training(image, target)

    stats = time_of(benchmark, step, NETWORK_ROUNDS, before=beside)
    return memory, stats, step_by_parts(step, stats.median)


def _used_memory():
    """Bytes on the GPU that are in use after the memory of earlier providers is freed."""
    gc.collect()
    if not ON_GPU:
        return 0
    synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()
