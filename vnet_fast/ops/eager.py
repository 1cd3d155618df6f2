"""Whether an operation may launch its kernels at once, without PyTorch's dispatcher, and whether it may run them."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_eager(tensor: Tensor) -> bool:
    """Whether nothing traces, compiles or transforms what is done with a tensor.

    Otherwise the registered operator has to be called, which those who trace can see.
    """
    return not (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or is_in_torch_dispatch_mode()
        or _is_forward_mode()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether `torch.func` transforms what is done with tensors, or one has a tangent of forward-mode differentiation.

    Registered operators have no rules for either, and would have derivatives of zero: their definitions run instead.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling() or not _is_forward_mode():
        return False
    return any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _is_forward_mode() -> bool:
    """Whether tensors may have tangents: within `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0
