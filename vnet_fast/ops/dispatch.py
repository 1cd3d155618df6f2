"""Which implementation of an operation runs: its Triton kernels on CUDA devices, its definition in plain
PyTorch elsewhere.
"""

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

from vnet_fast.ops import trials

LOG = logging.getLogger("vnet_fast")
_refused: set[tuple[str, torch.device]] = set()


@functools.cache
def load_kernels(name: str) -> ModuleType | None:
    """The module of an operation's kernels, or None where Triton is not installed or can't be imported."""
    try:
        return importlib.import_module(f"vnet_fast.kernels.{name}")
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"can't be imported ({type(error).__name__}: {error})"
        _say_once(f"Triton {reason}, so plain PyTorch runs instead of the kernels, which is slower. Install triton")
        return None


def can_run_kernels(tensor: Tensor) -> bool:
    """Whether kernels can run where a tensor is."""
    return tensor.is_cuda


def kernels_for(name: str, tensor: Tensor, *inputs: object) -> ModuleType | None:
    """The module of an operation's kernels if they can run where `tensor` is and passed their trial, else None.

    Args:
        name: of the operation.
        tensor: its first tensor.
        *inputs: the arguments of the kernels' `supports`; without them it is not asked.
    """
    if not can_run_kernels(tensor):
        return None
    kernels = load_kernels(name)
    if kernels is None or not trials.passed(name, kernels, tensor.device):
        return None
    if inputs and not kernels.supports(*inputs):
        _say_refused(name, tensor)
        return None
    return kernels


def _say_refused(name: str, tensor: Tensor) -> None:
    """Says, once for each operation, that its kernels don't take a tensor, and that its definition runs instead."""
    device, form = tensor.device, f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
    if (name, device) not in _refused:
        _refused.add((name, device))
        LOG.warning("%s: plain PyTorch runs %s for %s, which its kernels do not take", device, name, form)


@functools.cache
def _say_once(message: str) -> None:
    LOG.warning("%s", message)
