"""The plain network in other programs for CPUs, which read it from an ONNX file: OpenVINO and ONNX Runtime."""

import functools

import pytest
import torch
from torch import nn

from benchmarks.measure import SIZE
from benchmarks.volumes import SPACING
from vnet_fast import VNet
from vnet_fast.deployment.network_file import OUTPUT, onnx_bytes
from vnet_fast.deployment.program import plain_program

OPENVINO, ONNX_RUNTIME = "OpenVINO", "ONNX Runtime"
# of OpenVINO's inference precision
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
MODULES = {OPENVINO: "openvino", ONNX_RUNTIME: "onnxruntime"}


class Runtime(nn.Module):
    """A `vnet_fast.VNet()` that another program runs, as a module of PyTorch.

    Args:
        name: OPENVINO or ONNX_RUNTIME.
        dtype: in which OpenVINO computes.
    """

    def __init__(self, name, dtype):
        super().__init__()
        start = {OPENVINO: start_openvino, ONNX_RUNTIME: start_onnx_runtime}[name]
        self.run = start(dtype)
        # a prediction asks a network's parameters for its device
        self.device = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x):
        """Logits (N, 2, D, H, W) float32 of an image (N, 1, D, H, W) float32, on the CPU."""
        return torch.from_numpy(self.run(x.numpy()))


def require(name):
    """Skips the benchmark with a reason if a program is not installed."""
    for module in ("onnx", "onnxscript", MODULES[name]):
        pytest.importorskip(module, reason=f"{module} is not installed")


@functools.cache
def content():
    """The ONNX file of the network with the weights that all providers have, for any number of volumes of SIZE."""
    torch.manual_seed(0)
    model = VNet().requires_grad_(False).to(memory_format=torch.contiguous_format).eval()
    x, y, z = SIZE
    return onnx_bytes(plain_program(model, torch.zeros(2, 1, z, y, x)), {"spacing": " ".join(map(str, SPACING))})


def start_openvino(dtype):
    """A function from an image's array to its logits, computed by OpenVINO; compiled once per shape.

    Args:
        dtype: in which it computes.
    """
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }

    @functools.cache
    def compiled(shape):
        model = core.read_model(content())
        # known shapes let it choose its kernels
        model.reshape(shape)
        return core.compile_model(model, "CPU", settings)

    # a copy, because the next call overwrites the result
    return lambda x: compiled(x.shape)(x)[0].copy()


def start_onnx_runtime(dtype):
    """A function from an image's array to its logits, computed by ONNX Runtime in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content(), options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda x: session.run([OUTPUT], {image.name: x})[0]
