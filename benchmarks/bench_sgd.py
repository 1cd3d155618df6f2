"""An update of all weights from half-precision gradients, with half-precision copies: ours, PyTorch's, a copy."""

import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, copy_of, measure
from benchmarks.weights import DTYPE, of_a_network, title, with_casts
from vnet_fast.ops.sgd import Weights, sgd

RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.99, 5e-4


def tensors():
    """All weights of the network with what an update needs."""
    return [Weights(weight, gradient, torch.randn_like(weight), copy) for weight, gradient, copy in of_a_network()]


def ours(entries):
    """One launch for every 32 tensors of the same types."""
    rate = torch.tensor(RATE, device=DEVICE)
    return lambda: sgd(entries, rate, MOMENTUM, WEIGHT_DECAY)


def pytorch(entries):
    """What autocast and PyTorch's fused SGD do: each gradient is cast, the weights are updated, each weight is cast."""
    weights = [torch.nn.Parameter(entry.weight) for entry in entries]
    rate = torch.tensor(RATE, device=DEVICE) if ON_GPU else RATE
    optimizer = torch.optim.SGD(weights, lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    for weight, entry in zip(weights, entries, strict=True):
        optimizer.state[weight]["momentum_buffer"] = entry.momentum
    return with_casts(entries, optimizer)


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
    group = title("SGD", entries)
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic_of(entries)), traffic_of(entries))
        return
    check(PROVIDERS[provider])
    measure(benchmark, group, provider, lambda: PROVIDERS[provider](entries), traffic_of(entries))
