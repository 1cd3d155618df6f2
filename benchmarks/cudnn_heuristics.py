"""Asks cuDNN's heuristics, without a GPU, which engines they rank for every convolution of the network.

The questions are those that PyTorch asks in a training step: every convolution of both topologies, in every pass and
by every rewrite of `vnet_fast.ops.convolution`, in three precisions and two batches, for five generations of GPUs. The
layers come from the network and the shapes of the rewrites from the code that runs them, both on the meta device.

    python -m benchmarks.cudnn_heuristics --libraries FOLDER --torch 2.13.0

writes `benchmarks/results/cudnn/VERSION.json`; `python -m benchmarks.cudnn_tables` writes the tables from all of them.
"""

import argparse
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.floor import Convolution, convolutions
from vnet_fast.nn.topology import TOPOLOGIES
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.convolution import REWRITES, forward, grad_input, grad_weight

RESULTS = Path(__file__).parent / "results" / "cudnn"
SOURCE = Path(__file__).with_name("cudnn_heuristics.cpp")
SHAPE = (64, 128, 128)
BASE_CHANNELS = 16
BATCHES = (2, 1)
TYPES = ("bfloat16", "float16", "float32")
PASSES = ("forward", "grad_input", "grad_weight")
MODES = ("A", "B", "fallback")
# workspaces below it are not worth a word
LARGE_WORKSPACE = 256 * 2**20

HOW = """\
FOLDER is one into which pip installed cuDNN and the libraries that it loads, for example

    pip install --no-deps --target FOLDER nvidia-cudnn-cu13==9.20.0.48 'nvidia-cublas>=13.0,<13.1' \\
        'nvidia-cuda-nvrtc>=13.0,<13.1'
    pip install --no-deps --target FOLDER nvidia-cudnn-cu12==9.10.2.21 nvidia-cublas-cu12==12.8.4.1 \\
        nvidia-cuda-nvrtc-cu12==12.8.93

which need about 1.5 GB. `Requires-Dist` in the metadata of PyTorch's wheel names the version of cuDNN that it brings.
A C++ compiler is needed; CUDA's headers are those that Triton brings.
"""


def _gpu(name, capability, processors, threads, blocks, shared, memory, clock, memory_clock, cache):
    """The properties of a GPU as cuDNN's descriptor of a device has them; clocks in kHz, memory in bytes."""
    return {
        "maxGridSize": [2147483647, 65535, 65535],
        "maxBlockSize": [1024, 1024, 64],
        "regsPerBlock": 65536,
        "multiProcessorCount": processors,
        "warpSize": 32,
        "maxSharedMemoryPerBlock": 49152,
        "maxSharedMemoryPerBlockOptin": shared,
        "reservedSharedMemoryPerBlock": 1024,
        "maxRegistersPerSM": 65536,
        "maxCtasPerSM": blocks,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerSM": threads,
        "pciDeviceId": 0,
        "isTccDriver": 0,
        "supportCoopLaunch": 1,
        "totalGlobalMem": memory,
        "smClockRateKHz": clock,
        "memClockRateKHz": memory_clock,
        "l2CacheSize": cache,
        "cudaDeviceId": 0,
        "deviceVer": capability * 10,
        "driverVer": 13000,
        "deviceName": name,
    }


GPUS = {
    "sm_80": _gpu("NVIDIA A100-SXM4-80GB", 80, 108, 2048, 32, 166912, 85031714816, 1410000, 1593000, 41943040),
    "sm_89": _gpu("NVIDIA L40S", 89, 142, 1536, 24, 101376, 47697362944, 2520000, 9001000, 100663296),
    "sm_90": _gpu("NVIDIA H100 80GB HBM3", 90, 132, 2048, 32, 232448, 85029158912, 1980000, 2619000, 52428800),
    "sm_100": _gpu("NVIDIA B200", 100, 148, 2048, 32, 232448, 191503138816, 1965000, 3996000, 132644864),
    "sm_120": _gpu("NVIDIA GeForce RTX 5090", 120, 170, 1536, 24, 101376, 33661911040, 2407000, 14001000, 100663296),
}


@dataclass(frozen=True)
class Operation:
    """One call of cuDNN.

    Args:
        kind: `fwd`, `dgrad` or `wgrad` of the convolution that the rest describes.
        batch, channels, filters, volume, taps, stride, padding: of that convolution, lengths as z y x.
    """

    kind: str
    batch: int
    channels: int
    filters: int
    volume: tuple
    taps: tuple
    stride: int
    padding: tuple

    def question(self, dtype):
        """The line that the C++ program reads."""
        head = (self.kind, dtype, self.batch, self.channels, self.filters)
        return " ".join(map(str, (*head, *self.volume, *self.taps, self.stride, *self.padding)))

    @property
    def flops(self):
        """FLOPs, with the products with the padding's zeros and with those of a packed kernel."""
        lengths = [
            (length + 2 * pad - tap) // self.stride + 1
            for length, pad, tap in zip(self.volume, self.padding, self.taps, strict=True)
        ]
        products = torch.Size(lengths).numel() * torch.Size(self.taps).numel()
        return 2 * self.batch * self.channels * self.filters * products


class _Recorder(TorchDispatchMode):
    """Records the convolutions of stride 1 that a rewrite calls, each as an Operation."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default:
            x, weight, padding = args[0], args[1], args[4]
            self._add("fwd", x, weight, padding)
        if function is torch.ops.aten.convolution_backward.default:
            x, weight, padding, mask = args[1], args[2], args[5], args[10]
            self._add("dgrad" if mask[0] else "wgrad", x, weight, padding)
        return function(*args, **(kwargs or {}))

    def _add(self, kind, x, weight, padding):
        # PyTorch brings all tensors to the layout of either
        if not any(tensor.is_contiguous(memory_format=torch.channels_last_3d) for tensor in (x, weight)):
            raise ValueError(f"a rewrite must be channels-last; got strides {x.stride()} and {weight.stride()}")
        shape = (x.shape[0], x.shape[1], weight.shape[0], tuple(x.shape[2:]), tuple(weight.shape[2:]))
        self.operations.append(Operation(kind, *shape, 1, tuple(padding)))


@functools.cache
def layers(batch, shape=SHAPE, base_channels=BASE_CHANNELS):
    """Every different convolution of the network with its number in each topology, in the order of the forward pass.

    Args:
        batch, shape: of the input, (batch, 1, *shape).
        base_channels: of the network.

    Returns:
        dict from `floor.Convolution` to a dict from topology to number.
    """
    found = {}
    for topology in TOPOLOGIES:
        with torch.device("meta"):
            model = VNet(base_channels=base_channels, topology=topology)
        for layer in convolutions(model, (batch, 1, *shape))[0]:
            numbers = found.setdefault(layer, dict.fromkeys(TOPOLOGIES, 0))
            numbers[topology] += 1
    return found


def alternatives(layer):
    """The names of the rewrites that can serve a layer, `cudnn` first."""
    if layer.transposed or max(layer.stride) > 1:
        return ["cudnn"]
    x = torch.empty(layer.input, device="meta")
    kernel = layer.weight[2:]
    return [name for name, rewrite in REWRITES.items() if rewrite.fits(x, kernel)]


def operation(layer: Convolution, which, name):
    """The call of cuDNN in a pass of a layer by a rewrite."""
    if layer.transposed or max(layer.stride) > 1:
        return _strided(layer, which)
    x, grad_y, weight = (
        torch.empty(shape, device="meta").contiguous(memory_format=torch.channels_last_3d)
        for shape in (layer.input, layer.output, layer.weight)
    )
    rewrite = REWRITES[name]
    with _Recorder() as recorder:
        if which == "forward":
            forward(rewrite, x, weight)
        else:
            {"grad_input": grad_input, "grad_weight": grad_weight}[which](rewrite, grad_y, x, weight)
    (call,) = recorder.operations
    return call


def _strided(layer, which):
    """A pass of a down- or up-convolution; the latter is the gradient of a convolution from its output to its input."""
    kinds = {"forward": "fwd", "grad_input": "dgrad", "grad_weight": "wgrad"}
    read = layer.input
    if layer.transposed:
        kinds, read = {**kinds, "forward": "dgrad", "grad_input": "fwd"}, layer.output
    filters, channels = layer.weight[:2]
    return Operation(
        kinds[which], read[0], channels, filters, read[2:], layer.weight[2:], layer.stride[0], layer.padding
    )


@functools.cache
def questions(*case):
    """(layer, rewrite, pass) to Operation, for every pass of a training step; arguments as of `layers`."""
    return {
        (str(layer), name, which): operation(layer, which, name)
        for layer in layers(*case)
        for name in alternatives(layer)
        for which in PASSES
        if layer.needs_input_gradient or which != "grad_input"
    }


def compile_program(libraries, folder):
    """Compiles the C++ program against the cuDNN in a folder; its command and its environment."""
    import triton

    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    (cudnn,) = libraries.glob("**/libcudnn.so.9")
    program = Path(folder) / "cudnn_heuristics"
    include = ["-isystem", str(cudnn.parents[1] / "include"), "-isystem", str(headers)]
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O1", *include, str(SOURCE), str(cudnn), "-o", str(program)]
    subprocess.run(command, check=True)
    search = sorted({str(path.parent.resolve()) for path in libraries.glob("**/lib*.so.*")})
    return [str(program)], {**os.environ, "LD_LIBRARY_PATH": ":".join(search)}


class NoAnswerError(Exception):
    """cuDNN ended the program with a signal."""


def ask(program, gpu, lines):
    """The version of cuDNN and its answer to every line.

    Raises:
        NoAnswerError: if cuDNN crashes, as version 9.10 does for `sm_100`.
    """
    command, environment = program
    result = subprocess.run(
        [*command, json.dumps(GPUS[gpu])], input="\n".join(lines), env=environment, capture_output=True, text=True
    )
    first, *answers = result.stdout.splitlines() or [""]
    if result.returncode < 0:
        raise NoAnswerError(f"{first}, {gpu}: signal {-result.returncode} at question {len(answers) + 1}")
    if result.returncode or len(answers) != len(lines):
        raise RuntimeError(f"the program answered {len(answers)} of {len(lines)} questions: {result.stderr.strip()}")
    number = int(first.split()[1])
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}", answers


def summary(answer):
    """What matters of an answer: for each mode the first engine that PyTorch would try, and the first on tensor cores.

    `22t` is an engine on tensor cores, and `28/22t@3` engine 28 before engine 22, which is the third. `-` means that
    there is none. `:1024M` is a workspace of at least 256 MB. PyTorch skips engines without a plan, and those that
    round their inputs.
    """
    return " ".join(map(_summary_of_mode, answer.split(" | ")))


def _summary_of_mode(text):
    usable = []
    for word in text.split()[:-1]:
        match = re.fullmatch(r"(\d+)([a-z?]*):(\d+|-)", word)
        if match is None:
            # not listed
            usable.append(None)
        elif match[3] != "-" and "d" not in match[2]:
            usable.append((match[1], "t" in match[2], int(match[3])))
    if not any(usable):
        return "-"
    rank, tensor_core = next(((i, one) for i, one in enumerate(usable, 1) if one and one[1]), (0, None))
    first = _engine(*usable[0])
    return first if rank < 2 else f"{first}/{_engine(*tensor_core)}@{rank}"


def _engine(number, on_tensor_cores, workspace):
    size = f":{workspace // 2**20}M" if workspace >= LARGE_WORKSPACE else ""
    return f"{number}{'t' * on_tensor_cores}{size}"


def collect(program):
    """All answers of a cuDNN: its version, and a dict of (GPU, type, batch) to that of (layer, rewrite, pass).

    A GPU for which cuDNN crashes is left out.
    """
    found = {}
    asked = {batch: questions(batch) for batch in BATCHES}
    for gpu in GPUS:
        try:
            for dtype, batch in itertools.product(TYPES, BATCHES):
                version, answers = ask(program, gpu, [call.question(dtype) for call in asked[batch].values()])
                found[gpu, dtype, batch] = dict(zip(asked[batch], map(summary, answers), strict=True))
                print(f"cuDNN {version}: {gpu}, {dtype}, batch {batch}", file=sys.stderr)
        except NoAnswerError as error:
            print(error, file=sys.stderr)
    return version, found


def reference(dtype, batch):
    """The type and batch whose answers are repeated where those of another are left out, or None."""
    if batch != BATCHES[0]:
        return dtype, BATCHES[0]
    return (TYPES[0], batch) if dtype == "float16" else None


def joined(rows):
    """(layer, rewrite) to the answers of its passes in one text."""
    texts = {}
    for (layer, name, which), text in rows.items():
        texts.setdefault((layer, name), dict.fromkeys(PASSES, ""))[which] = text
    return {key: "|".join(passes.values()) for key, passes in texts.items()}


def store(folder, version, releases, found):
    """Writes the answers to VERSION.json, without those that a `reference` repeats."""
    answers = {gpu: {} for gpu, *_ in found}
    for (gpu, dtype, batch), rows in found.items():
        repeated = joined(found.get((gpu, *(reference(dtype, batch) or ())), {}))
        kept = answers[gpu].setdefault(dtype, {}).setdefault(str(batch), {})
        for (layer, name), text in joined(rows).items():
            if repeated.get((layer, name)) != text:
                kept.setdefault(layer, {})[name] = text
    content = {"cudnn": version, "torch": releases, "shape": list(SHAPE), "answers": answers}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{version}.json").write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def load(path):
    """The version of a stored result, the releases of PyTorch, and the answers as `collect` returns them."""
    content = json.loads(path.read_text())
    found = {}
    for gpu, (dtype, batch) in itertools.product(content["answers"], itertools.product(TYPES, BATCHES)):
        rows = dict(found.get((gpu, *(reference(dtype, batch) or ())), {}))
        for layer, names in content["answers"][gpu][dtype][str(batch)].items():
            for name, text in names.items():
                passes = zip(PASSES, text.split("|"), strict=True)
                rows.update({(layer, name, which): one for which, one in passes if one})
        found[gpu, dtype, batch] = rows
    return content["cudnn"], content["torch"], found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=HOW, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", type=Path, required=True, metavar="FOLDER", help="with cuDNN, see below")
    parser.add_argument("--torch", nargs="+", required=True, metavar="RELEASE", help="releases that bring this cuDNN")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the answers are written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        version, found = collect(compile_program(arguments.libraries, folder))
    store(arguments.results, version, arguments.torch, found)


if __name__ == "__main__":
    main()
