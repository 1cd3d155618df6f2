"""The forward pass on the device alone, and the prediction of a volume from file to file.

Before each round of a provider the baseline runs once: the ratio of both is of the same minutes.
"""

import contextlib
import functools
import math
import time

import pytest

from benchmarks import tables
from benchmarks.ceilings import ceilings_of
from benchmarks.floor import floor_of
from benchmarks.measure import NETWORK_ROUNDS, ON_GPU, SHAPE, SIZE, peak_memory, synchronize, time_limit, time_of
from benchmarks.providers import (
    BASELINE,
    COMPILE_LIMIT,
    COMPILED_ON_CPU,
    EAGER,
    FASTEST,
    GRAPH,
    OTHER_PROGRAMS,
    Beside,
    check_logits,
    exactly,
    fixed_batch,
    limit_cells,
    meta_model,
    predictor_of,
)
from benchmarks.volumes import SPACING
from vnet_fast.data.phantom import phantom
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.prediction.passes import EAGER_PASSES, Passes
from vnet_fast.prediction.task import Task

BATCHES = (1, 2)
PROVIDERS = {**EAGER, **GRAPH, **({} if ON_GPU else {**OTHER_PROGRAMS, **COMPILED_ON_CPU})}
LATENCY = "latency, ms"
FILE_PROVIDERS = {
    BASELINE: EAGER[BASELINE],
    "vnet_fast": EAGER["vnet_fast, float32"],
    "vnet_fast, --amp": EAGER["vnet_fast, AMP"],
    # of several volumes, as the command predicts them
    "vnet_fast, --amp, graph": GRAPH["vnet_fast, AMP, graph"],
}
if not ON_GPU:
    FILE_PROVIDERS |= OTHER_PROGRAMS
FILE_ROUNDS = 5 if ON_GPU else 3


@functools.cache
def baseline(batch):
    """A function of no arguments that runs the baseline's forward pass."""
    predict, (image, _) = predictor_of(EAGER[BASELINE]), fixed_batch(batch)
    return lambda: predict(image)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("batch", BATCHES)
def bench_inference(benchmark, batch, name):
    """Checks and times a provider's forward pass."""
    provider = PROVIDERS[name]
    provider.require()
    benchmark.group = f"forward pass, batch of {batch}"
    beside = Beside(None if name == BASELINE else functools.partial(baseline, batch))
    cells = {"batch": batch, "provider": name}
    with tables.failure_as_row("inference", cells, LATENCY, provider.ours):
        keep_freed_memory(provider.ours)
        predict, (image, _) = predictor_of(provider), fixed_batch(batch)
        limit = time_limit(COMPILE_LIMIT) if provider.compiled else contextlib.nullcontext()
        with exactly(provider.autocast), limit:
            logits = predict(image)
        check_logits(provider, logits)
        seconds = time_of(benchmark, lambda: predict(image), NETWORK_ROUNDS, 1, beside).median
        least = floor_of(meta_model(provider.network), (batch, 1, *SHAPE), FASTEST, ceilings_of(FASTEST)).forward
        cells |= {
            LATENCY: 1e3 * seconds,
            "volumes/s": batch / seconds,
            "extra memory, GB": peak_memory(lambda: predict(image)) / 1e9 if ON_GPU and not provider.graph else None,
            **limit_cells(provider, seconds, least),
            "times plain float32": beside.ratio(seconds, 1),
        }
        tables.keep(benchmark, "inference", cells)


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory):
    """The path of a phantom of the network's size and spacing, compressed."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    path = tmp_path_factory.mktemp("volumes") / "phantom.mhd"
    image = itk.GetImageFromArray(phantom(0, SIZE, SPACING)[0].round().astype("int16"))
    image.SetSpacing(SPACING)
    itk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("name", FILE_PROVIDERS)
def bench_files(benchmark, volume_file, name):
    """Times the prediction of a volume from its file to the file of its mask, with a provider's network."""
    from vnet_fast.prediction.segmentation import segment

    provider = FILE_PROVIDERS[name]
    provider.require()
    benchmark.group = "file to file"
    cells = {"provider": name}
    with tables.failure_as_row("files", cells, LATENCY, provider.ours):
        keep_freed_memory(provider.ours)
        model = provider.model()
        target, passes = volume_file.with_name("mask.mhd"), Passes(provider.graph)

        def run():
            result = segment(model, volume_file, Task(SPACING, SIZE), provider.autocast, passes=passes)
            result.write_mask(target)
            return result.network_probabilities

        for _ in range(EAGER_PASSES + 1 if provider.graph else 1):
            probabilities = run()
        assert passes.captured == provider.graph
        assert probabilities.shape[1:] == SHAPE
        assert math.isclose(probabilities.sum(0).mean(), 1, rel_tol=1e-4)
        seconds = time_of(benchmark, run, FILE_ROUNDS).median
        cells |= {LATENCY: 1e3 * seconds, "volumes/s": 1 / seconds}
        cells["share of the network, %"] = 100 * _network_seconds(model, provider) / seconds
        tables.keep(benchmark, "files", cells)


def _network_seconds(model, provider):
    """Seconds of the second of two forward passes of one volume."""
    predict, (image, _) = predictor_of(provider, model), fixed_batch(1)
    for _ in range(2):
        began = time.perf_counter()
        predict(image)
        synchronize()
    return time.perf_counter() - began
