"""A CUDA device that is a name: fake tensors have shape, type, strides and device, and no memory.

PyTorch refuses what it refuses on a GPU: tensors of two devices or two types where one is needed, numbers that only
the device knows. Its rules for the layouts of results are those of a GPU, except for those of convolutions where
PyTorch was built without CUDA: they follow the same rule, written here. Such a build also lacks the entry for CUDA in
PyTorch's list of devices, which a few lines of C++ make (`fake_guard.cpp`). They stay in the process, so that this
module is for processes of their own.
"""

import contextlib
import ctypes
import functools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from tests.gpu_rehearsal import fake_backward
from vnet_fast.ops import convolution, convolution_choice, training_pass, trials

CUDA = torch.device("cuda", 0)
# H100
CAPABILITY = (9, 0)
HAS_CUDA = torch.version.cuda is not None
GUARD = Path(__file__).with_name("fake_guard.cpp")
_select_backend, _layout_of_backend = torch._C._select_conv_backend, torch._C._conv_determine_backend_memory_format


class Stream:
    """A stream: what runs on it is not told apart."""

    def __init__(self, *arguments, **options):
        self.waited, self.recorded = [], []

    def __enter__(self):
        return self

    def __exit__(self, *arguments):
        return None

    def wait_stream(self, stream):
        self.waited.append(stream)

    def synchronize(self):
        raise AssertionError("the host waits for a stream")


@contextlib.contextmanager
def fake_cuda(rewrites=False):
    """Within it tensors are fake, and the package takes tensors on "cuda" for those of a GPU.

    Args:
        rewrites: whether convolutions are rewritten as the table of an H100 has it; else all of them are cuDNN's own.
    """
    _register_guard()
    with contextlib.ExitStack() as stack:
        mode_of_convolutions = convolution_choice.AUTO if rewrites else convolution_choice.CUDNN
        stack.enter_context(mock.patch.dict(os.environ, {convolution_choice.VARIABLE: mode_of_convolutions}))
        stack.enter_context(warnings.catch_warnings())
        # the address of a fake tensor is 0, which is aligned
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        mode = FakeTensorMode(allow_fallback_kernels=False)
        for patch in (*_patches(), *_of_numpy(mode)):
            stack.enter_context(patch)
        stack.enter_context(mode)
        stack.enter_context(fake_backward.in_python())
        stack.callback(_pinned.clear)
        yield


@functools.cache
def _register_guard():
    if HAS_CUDA:
        return
    package = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "guard.so"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-shared", "-fPIC", f"-I{package / 'include'}", GUARD]
        subprocess.run([*command, "-o", library, f"-L{package / 'lib'}", "-lc10"], check=True)
        ctypes.CDLL(str(library))


def put_on_device(module):
    """Makes a module's weights and buffers fake tensors on the device, with the strides that they have."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = torch.nn.Parameter(on_device(weight))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_device(buffer)
    return module


def on_device(tensor):
    """A fake tensor on the device, with shape, type and strides of another."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def _of_numpy(mode):
    """Arrays become fake tensors, and fake tensors arrays of zeros."""
    from_numpy = torch.from_numpy

    def to_fake(array):
        with unset_fake_temporarily():
            return mode.from_tensor(from_numpy(array))

    def to_zeros(tensor):
        if tensor.is_cuda:
            raise AssertionError("an array is made of a tensor on the device")
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=tensor.dtype).numpy()

    yield mock.patch.object(torch, "from_numpy", to_fake)
    yield mock.patch.object(FakeTensor, "numpy", to_zeros, create=True)
    yield mock.patch.object(FakeTensor, "tolist", lambda tensor: to_zeros(tensor.cpu()).tolist(), create=True)


def _patches():
    stream = Stream()
    of_cuda = {
        "is_bf16_supported": lambda including_emulation=True: True,
        "current_device": lambda: 0,
        "device_of": lambda tensor: contextlib.nullcontext(),
        "get_device_capability": lambda device=None: CAPABILITY,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda device=None: stream,
        "Stream": Stream,
        "stream": lambda stream: stream,
        "empty_cache": lambda: None,
    }
    yield from (mock.patch.object(torch.cuda, name, value) for name, value in of_cuda.items())
    yield mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False)
    yield mock.patch.object(torch._C, "_select_conv_backend", _conv_backend)
    yield mock.patch.object(torch._C, "_conv_determine_backend_memory_format", _conv_layout)
    yield mock.patch.object(torch.Tensor, "pin_memory", _pin)
    yield mock.patch.object(FakeTensor, "record_stream", _record_stream, create=True)
    # the trial of a kernel compares numbers
    yield mock.patch.object(trials, "passed", return_value=True)
    yield mock.patch.object(convolution, "_taps", _taps)
    # the type of a fake weight is not that of a weight
    yield mock.patch.object(training_pass, "_can_wait", lambda weight: weight.is_leaf and weight.dtype == torch.float32)
    for name, module in list(sys.modules.items()):
        if name.startswith("vnet_fast."):
            if hasattr(module, "is_eager"):
                # fake tensors go the way of real ones, not that of a compiler's
                yield mock.patch.object(module, "is_eager", return_value=True)
            if hasattr(module, "_tables"):
                # tables on the device that are kept for good
                yield mock.patch.object(module, "_tables", {})


# Fake tensors of the host that would be pinned: a GPU copies them without the host's waiting. By their memory, which
# they keep, so that no other tensor gets it.
_pinned = {}


def _pin(tensor):
    copy = tensor.clone()
    _pinned[copy.untyped_storage()._cdata] = copy
    return copy


def _record_stream(tensor, stream):
    stream.recorded.append(tensor)


def is_pinned(tensor):
    """Whether a tensor of the host was pinned."""
    return tensor.untyped_storage()._cdata in _pinned


def _conv_backend(*arguments, **options):
    if not HAS_CUDA:
        return SimpleNamespace(name="cuDNN's")
    # PyTorch asks the GPU whether it has bfloat16, and there is none; the choice is float16's
    return _select_backend(*map(_half, arguments), **{key: _half(value) for key, value in options.items()})


def _conv_layout(x, weight, backend):
    if HAS_CUDA:
        return _layout_of_backend(_half(x), _half(weight), backend)
    # PyTorch's rule for cuDNN: if one of the two is channels-last, the result is
    last = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
    is_last = x.dtype != torch.float64 and last in (suggest_memory_format(x), suggest_memory_format(weight))
    return last if is_last else torch.contiguous_format


def _half(value):
    is_bf16 = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
    return value.to(torch.float16) if is_bf16 else value


_real_taps = convolution._taps


def _taps(voxels, taps, device):
    with unset_fake_temporarily():
        tables = _real_taps(voxels, taps, torch.device("cpu"))
    return tuple(torch.empty(table.shape, dtype=table.dtype, device=device) for table in tables)
