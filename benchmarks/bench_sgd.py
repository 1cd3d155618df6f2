"""An update of all weights from half-precision gradients, with half-precision copies: ours, PyTorch's, a copy."""

import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, copy_of, measure
from vnet_fast import VNet
from vnet_fast.ops.sgd import Weights, sgd

DTYPE = torch.bfloat16
RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.99, 5e-4
# the paper's network on a GPU, and a sixteenth of its weights on a CPU
BASE_CHANNELS = 16 if ON_GPU else 4


def tensors():
    """All weights of the network with what an update needs: convolutions in half precision, the others in float32."""
    torch.manual_seed(0)
    model = VNet(base_channels=BASE_CHANNELS).to(DEVICE)
    kinds = torch.nn.Conv3d, torch.nn.ConvTranspose3d
    convolutions = {module.weight for module in model.modules() if isinstance(module, kinds)}
    entries = []
    for parameter in model.parameters():
        weight, half = parameter.detach(), parameter in convolutions
        gradient = torch.randn_like(weight).to(DTYPE if half else torch.float32)
        entries.append(Weights(weight, gradient, torch.randn_like(weight), weight.to(DTYPE) if half else None))
    return entries


def ours(entries):
    """One launch for every 32 tensors of the same types."""
    rate = torch.tensor(RATE, device=DEVICE)
    return lambda: sgd(entries, rate, MOMENTUM, WEIGHT_DECAY)


def pytorch(entries):
    """What autocast and PyTorch's fused SGD do: each gradient is cast, the weights are updated, each weight is cast."""
    weights = [torch.nn.Parameter(entry.weight) for entry in entries]
    rate = torch.tensor(RATE, device=DEVICE) if ON_GPU else RATE
    optimizer = torch.optim.SGD(weights, lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    casts = []
    for weight, entry in zip(weights, entries, strict=True):
        weight.grad = entry.gradient if entry.copy is None else torch.empty_like(weight)
        optimizer.state[weight]["momentum_buffer"] = entry.momentum
        if entry.copy is not None:
            casts.append((weight.detach(), weight.grad, entry.gradient, entry.copy))
    plain, wide_gradients, gradients, copies = (list(column) for column in zip(*casts, strict=True))

    def run():
        torch._foreach_copy_(wide_gradients, gradients)
        optimizer.step()
        torch._foreach_copy_(copies, plain)

    return run


PROVIDERS = {"vnet_fast": ours, "PyTorch": pytorch}


def check(make):
    """Raises AssertionError if weights, momenta or copies differ from those of the formula in float64."""
    entries = tensors()
    before = [(entry.weight.double(), entry.momentum.double()) for entry in entries]
    make(entries)()
    for entry, (weight, momentum) in zip(entries, before, strict=True):
        momentum = MOMENTUM * momentum + entry.gradient.double() + WEIGHT_DECAY * weight
        torch.testing.assert_close(entry.momentum.double(), momentum, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(entry.weight.double(), weight - RATE * momentum, rtol=1e-5, atol=1e-6)
        assert entry.copy is None or torch.equal(entry.copy, entry.weight.to(DTYPE))


def traffic_of(entries):
    """Bytes that an update must move: it reads and writes weights and momenta, reads gradients and writes copies."""
    return sum(
        2 * entry.weight.nbytes + 2 * entry.momentum.nbytes + entry.gradient.nbytes
        + (0 if entry.copy is None else entry.copy.nbytes)
        for entry in entries
    )  # fmt: skip


@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_sgd(benchmark, provider):
    """Checks and times the update of a provider."""
    entries = tensors()
    count = sum(entry.weight.numel() for entry in entries)
    group = f"SGD, {len(entries)} tensors, {count / 1e6:.1f} million weights, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic_of(entries)), traffic_of(entries))
        return
    check(PROVIDERS[provider])
    measure(benchmark, group, provider, lambda: PROVIDERS[provider](entries), traffic_of(entries))
