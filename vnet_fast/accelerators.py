"""The GPUs of Apple (MPS) and Intel (XPU). No kernels run there but PyTorch's own, and no CUDA graphs."""

import functools

import torch

# of the option --device: who makes them
ACCELERATORS = {"mps": "Apple", "xpu": "Intel"}
# what PyTorch says where the memory of Apple's GPUs does not suffice; for Intel's it has an exception
MPS_OUT_OF_MEMORY = "MPS backend out of memory"


def accelerator_is_available(kind: str) -> bool:
    """Whether PyTorch finds a GPU of a kind."""
    return torch.backends.mps.is_available() if kind == "mps" else torch.xpu.is_available()


def accelerator_name(device: torch.device) -> str:
    """The name of a GPU, for the log."""
    return "Apple GPU (MPS)" if device.type == "mps" else f"{torch.xpu.get_device_name(device)} (XPU)"


def empty_cache(device: torch.device) -> None:
    """Returns the memory that PyTorch keeps for later to a GPU."""
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()


def synchronize(device: torch.device) -> None:
    """Waits until a GPU, of whatever kind, has done what it was given; a CPU has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: Apple's GPUs do not, and of Intel's only some."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"
