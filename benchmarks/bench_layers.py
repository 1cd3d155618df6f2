"""Each pass of every convolution of the paper's network, alone; by PyTorch and by each rewrite or kernel of ours."""

import collections
import math
import os
import tempfile

import pytest
import torch

from benchmarks import tables
from benchmarks.ceilings import ceilings_of
from benchmarks.floor import PASSES, convolutions
from benchmarks.measure import DEVICE, ON_GPU, SHAPE, device_time, synchronize, time_of
from benchmarks.parts import device_seconds, profiled
from benchmarks.providers import FASTEST, TIMES_DIRECT, as_ours, exactly, meta_model
from vnet_fast.ops import convolution, convolution_choice, cpu_convolution, cpu_convolution_choice, cpu_strided

BATCH = 2 if ON_GPU else 1
# a CPU without fast bfloat16 has float32 only
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in ((FASTEST,) if ON_GPU else (torch.float32, FASTEST))}
ROUNDS = 10 if ON_GPU else 3
# the largest error of a result against float32, relative to its norm; of float32, in another order of the sums
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.02, torch.float16: 0.02}
TIME = "time, µs"
# by whom a pass is computed on a CPU, and what our kernels of stride 2 are
ONEDNN, OURS, PRODUCT = "oneDNN", "vnet_fast", "matrix product"

# how often each convolution is in the network, in the order of the forward pass
LAYERS = collections.Counter(convolutions(meta_model("vnet_fast"), (BATCH, 1, *SHAPE))[0])
# what the program calls the passes
PROGRAM_NAMES = dict(zip(PASSES, ("forward", "grad_input", "grad_weight"), strict=True))


def rewrites_of(layer, pass_name):
    """The names of a pass's rewrites that the program would try on a GPU, `cudnn` first; on a CPU ONEDNN and OURS."""
    if not ON_GPU:
        return [ONEDNN, OURS]
    keeps_shape = not layer.transposed and max(layer.stride) == 1
    if not keeps_shape:
        return [convolution_choice.CUDNN]
    described = convolution_choice.Layer(
        PROGRAM_NAMES[pass_name], FASTEST, layer.input, layer.weight[0], layer.weight[2:]
    )
    return convolution_choice.candidates(described)


MEASURED = [
    (layer, pass_name, rewrite)
    for layer in LAYERS
    for pass_name in layer.passes
    for rewrite in rewrites_of(layer, pass_name)
]


def tensors(layer, dtype):
    """Input, weight and the output's gradient, channels-last as in the network."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = layer.input, layer.weight, layer.output
    # the weights are scaled so that the output's values are near 1
    scales = 1.0, (math.prod(layer.output) * 2 / layer.flops) ** 0.5, 1.0
    return [
        (scale * torch.randn(shape, generator=generator, device=DEVICE))
        .to(dtype)
        .contiguous(memory_format=torch.channels_last_3d)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def run_of(layer, pass_name, x, weight, grad, rewrite=None):
    """A function of no arguments that runs one pass; without a rewrite PyTorch's."""
    if rewrite == OURS:
        return _our_run(layer, pass_name, x, weight.float(), grad)
    if rewrite not in (None, ONEDNN, convolution_choice.CUDNN):
        chosen = convolution.REWRITES[rewrite]
        return {
            "forward": lambda: convolution.forward(chosen, x, weight),
            "input gradient": lambda: convolution.grad_input(chosen, grad, x, weight),
            "weight gradient": lambda: convolution.grad_weight(chosen, grad, x, weight),
        }[pass_name]
    zeros = [0] * 3
    settings = layer.stride, layer.padding, [1] * 3, layer.transposed, zeros, 1
    if pass_name == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *settings)
    wanted = [pass_name == name for name in PASSES[1:]] + [False]
    place = wanted.index(True)
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, wanted)[place]


def _our_run(layer, pass_name, x, weight, grad):
    of_x, of_weight = (pass_name == name for name in PASSES[1:])
    if layer.transposed or max(layer.stride) > 1:
        if not cpu_strided.takes(x, weight, layer.transposed):
            pytest.skip("no kernel of ours is for it")
        if pass_name == "forward":
            return lambda: cpu_strided.convolve(x, weight, None, layer.transposed)
        operator = torch.ops.vnet_fast.cpu_strided_backward
        return lambda: operator(grad, x, weight, layer.transposed, of_x, of_weight)[of_weight]
    if not cpu_convolution.takes(x, weight):
        pytest.skip("no kernel of ours is for it")
    if pass_name == "forward":
        return lambda: cpu_convolution.convolve(x, weight, None)
    operator = torch.ops.vnet_fast.cpu_convolution_backward
    return lambda: operator(grad, x, weight, of_x, of_weight)[of_weight]


def _our_kernel(layer, pass_name, x, weight):
    """The name of the form in which a pass of ours ran."""
    if layer.transposed or max(layer.stride) > 1:
        return PRODUCT
    met = convolution_choice.Layer.of(PROGRAM_NAMES[pass_name], x, weight.float())
    return dict(cpu_convolution_choice.chosen())[str(met)]


def check(layer, pass_name, inputs, result):
    """Raises AssertionError if a result differs from that of float32 on the same inputs."""
    with exactly(None):
        expected = run_of(layer, pass_name, *(tensor.float() for tensor in inputs))()
    assert result.isfinite().all(), "its result is not finite"
    error = ((result.float() - expected).norm() / expected.norm()).item()
    assert error <= TOLERANCE[inputs[0].dtype], f"its result is wrong by {100 * error:.2g} % of its norm"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer", "pass_name", "rewrite"), MEASURED, ids=str)
def bench_layers(benchmark, layer, pass_name, rewrite, dtype):
    """Checks and times one pass of a convolution."""
    benchmark.group = f"{pass_name}, {dtype}"
    cells = {"layer": str(layer), "in the network": LAYERS[layer], "pass": pass_name, "precision": dtype}
    cells["rewrite" if ON_GPU else "by"] = rewrite
    with as_ours(), tables.failure_as_row("layers", cells, TIME):
        inputs = tensors(layer, DTYPES[dtype])
        run = run_of(layer, pass_name, *inputs, rewrite)
        check(layer, pass_name, inputs, run())
        seconds = time_of(benchmark, run, ROUNDS, warm_up=1).median
        if ON_GPU:
            seconds = device_time(lambda: run)
        cells |= {TIME: 1e6 * seconds, "in a step, ms": 1e3 * seconds * LAYERS[layer]}
        if rewrite == OURS:
            cells["kernel"] = _our_kernel(layer, pass_name, *inputs[:2])
        else:
            cells["kernel"] = (_longest_kernel if ON_GPU else _onednn_kernel)(run)
        cells |= limits(layer, DTYPES[dtype], seconds, cells["kernel"])
        tables.keep(benchmark, "layers", cells)


def limits(layer, dtype, seconds, kernel):
    """The cells that compare a layer's time with what the machine allows for direct sums."""
    ceilings = ceilings_of(dtype)
    floor = layer.floor(dtype, ceilings)
    if kernel in cpu_convolution_choice.FILTERED:
        return {TIMES_DIRECT: floor / seconds}
    return {
        "TFLOP/s": layer.flops / seconds / 1e12,
        "share of peak, %": 100 * layer.flops / seconds / ceilings.flops,
        "share of floor, %": 100 * floor / seconds,
    }


def _longest_kernel(run):
    """The name of the kernel that takes the most time on the GPU, or None."""
    seconds = device_seconds(profiled(run))
    return max(seconds, key=seconds.get, default=None)


def _onednn_kernel(run):
    """oneDNN's name of its implementation of the convolution, or None if oneDNN did not run.

    oneDNN prints the name to the process's standard output, from C.
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
    convolutions_run = [line for line in lines if "exec" in line and len(line) > 6 and "convolution" in line[5]]
    return max(convolutions_run, key=lambda line: float(line[-1]))[6] if convolutions_run else None
