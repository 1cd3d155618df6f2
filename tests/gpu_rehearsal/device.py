"""A CUDA device that does nothing, for rehearsals without a GPU.

`stub.c` is a CUDA driver library whose launches end in nothing. With it, Triton's compiler, argument binder, ptxas and
C launcher run as they do on a GPU, up to the launch. Since Triton keeps one driver for a process, and the tests' own
process interprets kernels, the device is pretended in a process of its own:

    stub = device.Stub(tmp_path)
    result = stub.run("print(dispatch.can_run_kernels(torch.ones(1)))", capability=(8, 0), environment={"CC": "no"})
    assert result.returncode == 0, result.stderr

Tensors are the CPU's. What a kernel should write stays as it was.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("stub.c")
# set in the child process
LIBRARY_VARIABLE = "VNET_FAST_STUB_LIBRARY"
# of PyTorch's current stream, so that a launch on another stream shows
STREAM = 77
# what `Stub.run` puts before the code
PRELUDE = """\
from tests.gpu_rehearsal import device
device.pretend({capability!r}, kernels={kernels!r})
import torch
from vnet_fast.ops import dispatch
"""


class Properties(NamedTuple):
    """Of a device: shared memory in bytes, and multiprocessors."""

    shared_per_block: int
    shared_per_multiprocessor: int
    multiprocessors: int


# A100, H100, B200
DEVICES = {
    (8, 0): Properties(163 << 10, 164 << 10, 108),
    (9, 0): Properties(227 << 10, 228 << 10, 132),
    (10, 0): Properties(227 << 10, 228 << 10, 148),
}


class Launch(ctypes.Structure):
    """A launch that the stub has recorded; `function` is the handle that Triton keeps with a compiled kernel."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_uint64),
        ("function", ctypes.c_uint64),
    )


def missing():
    """Why there can be no rehearsal here, or None."""
    triton = importlib.util.find_spec("triton")
    if triton is None:
        return "Triton is not installed"
    if compiler() is None:
        return "there is no C compiler"
    if not (headers() / "cuda.h").is_file():
        return f"this Triton comes without cuda.h ({headers()})"
    import torch

    return "there is a CUDA device, on which the kernels run" if torch.cuda.is_available() else None


def compiler():
    """The C compiler, or None."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def headers():
    """The folder of Triton's own cuda.h."""
    return Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "include"


class Stub:
    """The stub, compiled into a folder.

    Args:
        folder: an empty one.
        cache: Triton's, of compiled kernels; a folder within the other by default.
    """

    def __init__(self, folder, cache=None):
        self.folder = Path(folder)
        self.cache = cache or self.folder / "cache"
        self.library = self.folder / "libcuda.so.1"
        # by its soname, the loader takes it for the real library wherever one is asked for
        options = ["-shared", "-fPIC", "-O1", f"-I{headers()}", f"-Wl,-soname,{self.library.name}"]
        subprocess.run([compiler(), *options, "-o", self.library, SOURCE], check=True)

    def run(self, code, capability=(9, 0), environment=None, kernels=True, timeout=120):
        """Runs Python code in a process with a pretended device.

        Args:
            code: Python source. `device` (this module), `torch` and `dispatch` are imported already.
            capability: a key of DEVICES.
            environment: variables that are set, or with None removed. TRITON_INTERPRET is not set, and
                TRITON_CACHE_DIR is a folder that all runs of this stub share, unless they are given.
            kernels: whether the operators take the kernels for CPU tensors.
            timeout: in seconds.

        Returns:
            subprocess.CompletedProcess, with stdout and stderr as text.
        """
        variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        variables |= {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(self.cache)}
        variables |= {LIBRARY_VARIABLE: str(self.library)} | (environment or {})
        variables = {name: value for name, value in variables.items() if value is not None}
        command = [sys.executable, "-c", PRELUDE.format(capability=capability, kernels=kernels) + code]
        return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout)


def pretend(capability=(9, 0), kernels=True):
    """Lets Triton believe in a device, in a process that has the library in its environment.

    Args:
        capability: a key of DEVICES.
        kernels: whether the operators take the kernels for CPU tensors.
    """
    library = Path(os.environ[LIBRARY_VARIABLE])
    # found when Triton links its launcher, and, loaded already, when it loads it
    os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
    _stub().stub_device(*DEVICES[capability])

    import torch
    from triton.backends.nvidia import driver

    driver.CudaDriver.is_active = staticmethod(lambda: True)
    torch.cuda.get_device_capability = lambda device=None: capability
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch._C._cuda_getCurrentRawStream = lambda device: STREAM
    if kernels:
        from vnet_fast.ops import dispatch

        dispatch.can_run_kernels = lambda tensor: tensor.dtype != torch.float64


def launches():
    """The launches so far, a list of `Launch`."""
    return _stub().stub_records()[: _stub().stub_launches()]


def modules():
    """How many compiled kernels have been loaded."""
    return _stub().stub_modules()


def _stub():
    library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE], mode=ctypes.RTLD_GLOBAL)
    library.stub_launches.restype = ctypes.c_long
    library.stub_records.restype = ctypes.POINTER(Launch)
    return library
