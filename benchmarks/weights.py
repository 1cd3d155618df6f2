"""The weights of a network as an update finds them, and the casts that autocast adds to an update."""

import torch

from benchmarks.measure import DEVICE, ON_GPU
from vnet_fast import VNet

DTYPE = torch.bfloat16
# the paper's network on a GPU, and a sixteenth of its weights on a CPU
BASE_CHANNELS = 16 if ON_GPU else 4


def of_a_network():
    """(weight, gradient, copy) of all weights: convolutions in half precision, the others in float32 without a copy."""
    torch.manual_seed(0)
    model = VNet(base_channels=BASE_CHANNELS).to(DEVICE)
    kinds = torch.nn.Conv3d, torch.nn.ConvTranspose3d
    convolutions = {module.weight for module in model.modules() if isinstance(module, kinds)}
    for parameter in model.parameters():
        weight, half = parameter.detach(), parameter in convolutions
        gradient = torch.randn_like(weight).to(DTYPE if half else torch.float32)
        yield weight, gradient, weight.to(DTYPE) if half else None


def with_casts(entries, optimizer):
    """An update by an optimiser of PyTorch, with autocast's casts: of each gradient before, and of each weight after.

    Args:
        entries: with `weight`, `gradient` and `copy`.
        optimizer: of one group of parameters with the memory of the weights, in this order. They get gradients.
    """
    casts = []
    for weight, entry in zip(optimizer.param_groups[0]["params"], entries, strict=True):
        weight.grad = entry.gradient if entry.copy is None else torch.empty_like(weight)
        if entry.copy is not None:
            casts.append((weight.detach(), weight.grad, entry.gradient, entry.copy))
    plain, wide_gradients, gradients, copies = (list(column) for column in zip(*casts, strict=True))

    def run():
        torch._foreach_copy_(wide_gradients, gradients)
        optimizer.step()
        torch._foreach_copy_(copies, plain)

    return run


def title(name, entries):
    """As in `SGD, 89 tensors, 65.2 million weights, bfloat16`."""
    count = sum(entry.weight.numel() for entry in entries)
    return f"{name}, {len(entries)} tensors, {count / 1e6:.1f} million weights, {str(DTYPE).removeprefix('torch.')}"
