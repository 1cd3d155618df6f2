"""Every convolution of the paper's network and each of its passes, by itself."""

import collections
import math
import os
import tempfile

import pytest
import torch

from benchmarks import tables
from benchmarks.floor import PASSES, ceilings_of, convolutions
from benchmarks.measure import DEVICE, ON_GPU, VOLUME, device_time, synchronize, time_of
from benchmarks.parts import device_seconds, profiled
from benchmarks.providers import FASTEST, exactly, meta_model

BATCH = 2 if ON_GPU else 1
# on a CPU without fast bfloat16 both are float32
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in ((FASTEST,) if ON_GPU else (torch.float32, FASTEST))}
ROUNDS = 10 if ON_GPU else 3
# of a half-precision result against float32, relative to its norm
TOLERANCE = 0.02
TIME = "time, µs"

# how often each one is there, in the order of the forward pass
LAYERS = collections.Counter(convolutions(meta_model("vnet_fast"), (BATCH, 1, *VOLUME))[0])
MEASURED = [(layer, name) for layer in LAYERS for name in layer.passes]


def tensors(layer, dtype):
    """Input, weight and the output's gradient, channels-last as the network has them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = layer.input, layer.weight, layer.output
    # weights of a size that keeps the output's near 1
    scales = 1.0, (math.prod(layer.output) * 2 / layer.flops) ** 0.5, 1.0
    return [
        (scale * torch.randn(shape, generator=generator, device=DEVICE))
        .to(dtype)
        .contiguous(memory_format=torch.channels_last_3d)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def run_of(layer, which, x, weight, grad):
    """A function of no arguments that runs one pass."""
    zeros = [0] * 3
    settings = layer.stride, layer.padding, [1] * 3, layer.transposed, zeros, 1
    if which == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *settings)
    mask = [which == name for name in PASSES[1:]] + [False]
    place = mask.index(True)
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)[place]


def check(layer, which, inputs, result):
    """Raises AssertionError if a half-precision result is not that of float32 on the same numbers."""
    with exactly(None):
        expected = run_of(layer, which, *(tensor.float() for tensor in inputs))()
    assert result.isfinite().all(), "its result is not finite"
    error = ((result.float() - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCE, f"its result is wrong by {100 * error:.2g} % of its norm"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer", "which"), MEASURED, ids=str)
def bench_layers(benchmark, layer, which, dtype):
    benchmark.group = f"{which}, {dtype}"
    cells = {"layer": str(layer), "in the network": LAYERS[layer], "pass": which, "precision": dtype}
    with tables.failure_as_row("layers", cells, TIME):
        inputs = tensors(layer, DTYPES[dtype])
        run = run_of(layer, which, *inputs)
        check(layer, which, inputs, run())
        seconds = time_of(benchmark, run, ROUNDS, warm_up=1).median
        if ON_GPU:
            seconds = device_time(lambda: run)
        ceilings = ceilings_of(DTYPES[dtype])
        cells |= {
            TIME: 1e6 * seconds,
            "in a step, ms": 1e3 * seconds * LAYERS[layer],
            "TFLOP/s": layer.flops / seconds / 1e12,
            "share of a matrix product, %": 100 * layer.flops / seconds / ceilings.flops,
            "share of its floor, %": 100 * layer.floor(DTYPES[dtype], ceilings) / seconds,
            "kernel": (_longest_kernel if ON_GPU else _onednn_kernel)(run),
        }
        tables.keep(benchmark, "layers", cells)


def _longest_kernel(run):
    """The name of the kernel that takes the most time on the GPU."""
    seconds = device_seconds(profiled(run))
    return max(seconds, key=seconds.get, default=None)


def _onednn_kernel(run):
    """oneDNN's name of the implementation of the convolution; None where it is not oneDNN's.

    oneDNN prints it, from C, to the process's standard output.
    """
    synchronize()
    with tempfile.TemporaryFile("w+") as printed:
        saved = os.dup(1)
        os.dup2(printed.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                run()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        printed.seek(0)
        lines = [line.strip().split(",") for line in printed if line.startswith("onednn_verbose")]
    # onednn_verbose,v1,primitive,exec,cpu,convolution,NAME,…,milliseconds
    found = [line for line in lines if "exec" in line and len(line) > 6 and "convolution" in line[5]]
    return max(found, key=lambda line: float(line[-1]))[6] if found else None
