"""The library of the CPU's kernels that runs on this processor: found beside the package, or compiled at its first use.

Which set of instructions is used follows PyTorch's own choice, so that no instruction runs which the processor lacks;
`ATEN_CPU_CAPABILITY` (`avx2`, `default`) limits both.
"""

import ctypes
import functools
import logging
import threading
from pathlib import Path

import torch

from vnet_fast.errors import InputError
from vnet_fast.files import make_folder
from vnet_fast.kernels import cpu_library as compiled

PORTABLE = "portable"
FOLDER = Path("~/.cache/vnet_fast/kernels")
INSTALL = "Install a C++ compiler such as g++"
NAMES = {"avx512": "AVX-512", "avx2": "AVX2", PORTABLE: "any processor"}
LOG = logging.getLogger("vnet_fast")
# as PyTorch names what it found, and what of our sets such a processor has
_AT_MOST = {"AVX512": "avx512", "AVX2": "avx2"}
_lock = threading.Lock()


def target() -> str:
    """The widest set of instructions that this processor has and that the kernels are written for."""
    widest = _AT_MOST.get(torch.backends.cpu.get_cpu_capability(), PORTABLE)
    return widest if widest in compiled.targets() else PORTABLE


def library() -> ctypes.CDLL | None:
    """The kernels' library for this processor; None, with one line that says why, if there is none."""
    with _lock:
        return _library(target())


@functools.cache
def _library(name: str) -> ctypes.CDLL | None:
    beside = compiled.SOURCES.parent / compiled.file_name(name)
    found: ctypes.CDLL | None = compiled.open_library(beside)
    if found is not None:
        return found
    try:
        path = make_folder(FOLDER.expanduser() / compiled.digest()) / compiled.file_name(name)
        found = compiled.open_library(path)
        if found is None:
            LOG.info("compiling the kernels of the CPU, once")
            compiled.compile_library(name, path)
            found = compiled.open_library(path)
        reason = f"{path} can't be loaded"
    except (compiled.CompilerError, InputError, RuntimeError) as error:
        # without a home folder, expanduser raises a RuntimeError
        reason = str(error)
    if found is None:
        LOG.warning("the CPU's kernels are missing (%s), so oneDNN runs, which is slower. %s", reason, INSTALL)
    return found
