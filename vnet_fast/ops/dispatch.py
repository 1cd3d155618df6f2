"""Which implementation of an operation runs: its Triton kernels on CUDA devices, its definition in plain
PyTorch elsewhere.
"""

import functools
import importlib
from types import ModuleType

from torch import Tensor


@functools.cache
def load_kernels(name: str) -> ModuleType | None:
    """The module of an operation's kernels, or None where Triton is not installed."""
    try:
        return importlib.import_module(f"vnet_fast.kernels.{name}")
    except ImportError:
        return None


def can_run_kernels(tensor: Tensor) -> bool:
    """Whether kernels can run where a tensor is."""
    return tensor.is_cuda


def kernels_for(name: str, tensor: Tensor) -> ModuleType | None:
    """The module of an operation's kernels if they can run where `tensor` is, else None."""
    return load_kernels(name) if can_run_kernels(tensor) else None
