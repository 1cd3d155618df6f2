"""The forward pass on the device alone, and volumes from file to file."""

import math
import time

import pytest

from benchmarks import tables
from benchmarks.floor import ceilings_of, floor_of
from benchmarks.measure import NETWORK_ROUNDS, ON_GPU, VOLUME, peak_memory, synchronize, time_of
from benchmarks.providers import BASELINE, EAGER, FASTEST, check_logits, exactly, fixed_batch, meta_model, predictor_of
from benchmarks.volumes import SPACING
from vnet_fast.data.phantom import phantom
from vnet_fast.devices import keep_freed_memory

BATCHES = (1, 2)
LATENCY = "latency, ms"
FILES = {
    BASELINE: EAGER[BASELINE],
    "vnet_fast": EAGER["vnet_fast, float32"],
    "vnet_fast, --amp": EAGER["vnet_fast, AMP"],
}
FILE_ROUNDS = 5 if ON_GPU else 2
# seconds of it for each batch
baseline = {}


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("batch", BATCHES)
def bench_inference(benchmark, batch, name):
    provider = EAGER[name]
    provider.require()
    benchmark.group = f"forward pass, batch of {batch}"
    cells = {"batch": batch, "provider": name}
    with tables.failure_as_row("inference", cells, LATENCY, provider.ours):
        keep_freed_memory(provider.ours)
        predict, (image, _) = predictor_of(provider), fixed_batch(batch)
        with exactly(provider.autocast):
            check_logits(provider, predict(image))
        seconds = time_of(benchmark, lambda: predict(image), NETWORK_ROUNDS, warm_up=1).median
        if name == BASELINE:
            baseline[batch] = seconds
        least = floor_of(meta_model(provider.network), (batch, 1, *VOLUME), FASTEST, ceilings_of(FASTEST)).forward
        cells |= {
            LATENCY: 1e3 * seconds,
            "volumes/s": batch / seconds,
            "extra memory, GB": peak_memory(lambda: predict(image)) / 1e9 if ON_GPU else None,
            "floor, ms": 1e3 * least,
            "share of floor, %": 100 * least / seconds,
            "times plain float32": baseline[batch] / seconds if batch in baseline else None,
        }
        tables.keep(benchmark, "inference", cells)


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory):
    """A phantom of the network's size and spacing, compressed."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    path = tmp_path_factory.mktemp("volumes") / "phantom.mhd"
    image = itk.GetImageFromArray(phantom(0, VOLUME[::-1], SPACING)[0].round().astype("int16"))
    image.SetSpacing(SPACING)
    itk.WriteImage(image, str(path), useCompression=True)
    return path


@pytest.mark.parametrize("name", FILES)
def bench_files(benchmark, volume_file, name):
    from vnet_fast.io import volumes
    from vnet_fast.prediction.segmentation import segment, to_labels

    provider = FILES[name]
    provider.require()
    benchmark.group = "file to file"
    cells = {"provider": name}
    with tables.failure_as_row("files", cells, LATENCY, provider.ours):
        keep_freed_memory(provider.ours)
        model = provider.model()
        target = volume_file.with_name("mask.mhd")

        def run():
            image, probabilities, _ = segment(model, volume_file, SPACING, VOLUME[::-1], provider.autocast)
            volumes.write(to_labels(probabilities), image, target)
            return probabilities

        probabilities = run()
        assert probabilities.shape[1:] == VOLUME
        assert math.isclose(probabilities.sum(0).mean(), 1, rel_tol=1e-4)
        seconds = time_of(benchmark, run, FILE_ROUNDS).median
        cells |= {LATENCY: 1e3 * seconds, "volumes/s": 1 / seconds}
        cells["of it the network, %"] = 100 * _network_seconds(model, provider) / seconds
        tables.keep(benchmark, "files", cells)


def _network_seconds(model, provider):
    """Seconds of a forward pass of one volume, of a second one."""
    predict, (image, _) = predictor_of(provider, model), fixed_batch(1)
    for _ in range(2):
        began = time.perf_counter()
        predict(image)
        synchronize()
    return time.perf_counter() - began
