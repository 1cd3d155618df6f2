"""Which implementation of an operation runs: its Triton kernels on CUDA devices, its definition in plain
PyTorch elsewhere.
"""

import functools
import importlib
import logging
from types import ModuleType

from torch import Tensor

from vnet_fast.ops import trials

LOG = logging.getLogger("vnet_fast")


@functools.cache
def load_kernels(name: str) -> ModuleType | None:
    """The module of an operation's kernels, or None where Triton is not installed or can't be imported."""
    try:
        return importlib.import_module(f"vnet_fast.kernels.{name}")
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError):
            _say_once(f"Triton can't be imported ({type(error).__name__}: {error}), so plain PyTorch runs instead")
        return None


def can_run_kernels(tensor: Tensor) -> bool:
    """Whether kernels can run where a tensor is."""
    return tensor.is_cuda


def kernels_for(name: str, tensor: Tensor) -> ModuleType | None:
    """The module of an operation's kernels if they can run where `tensor` is and passed their trial, else None."""
    if not can_run_kernels(tensor):
        return None
    kernels = load_kernels(name)
    return kernels if kernels is not None and trials.passed(name, kernels, tensor.device) else None


@functools.cache
def _say_once(message: str) -> None:
    LOG.warning("%s", message)
