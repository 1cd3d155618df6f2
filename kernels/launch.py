"""What all launches share."""

import contextlib

import torch

_HERE = contextlib.nullcontext()


def on_device_of(tensor):
    """A context in which kernels are launched on the device of a tensor.

    It costs nothing where that is the current device, which is the rule; `torch.cuda.device_of` would take several
    microseconds.
    """
    index = tensor.get_device()
    return _HERE if index < 0 or index == torch.cuda.current_device() else torch.cuda.device(index)


def is_capturing(tensor):
    """Whether launches on the device of a tensor go into a CUDA graph, so that nothing may be copied from the host."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
