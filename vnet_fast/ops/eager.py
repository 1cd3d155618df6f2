"""Whether an operation may launch its kernels at once, without PyTorch's dispatcher."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_eager(tensor: Tensor) -> bool:
    """Whether nothing traces, compiles or transforms what is done with a tensor.

    Otherwise the registered operator has to be called, which those who trace can see.
    """
    return not (
        torch.compiler.is_compiling()
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )
