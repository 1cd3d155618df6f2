"""An update of all weights by AdamW from half-precision gradients, with half-precision copies and a moving average of
the weights: ours, PyTorch's, a copy.
"""

import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, copy_of, measure
from benchmarks.weights import DTYPE, of_a_network, title, with_casts
from vnet_fast.ops.adamw import AdamSettings, AdamWeights, adamw, advance

RATE, BETAS, EPSILON, WEIGHT_DECAY, AVERAGE_DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2, 0.99
# updates before the one that is checked
STEPS = 3


def tensors():
    """All weights of the network with what an update needs."""
    return [
        AdamWeights(
            weight,
            gradient,
            torch.randn_like(weight),
            torch.rand_like(weight),
            torch.full((), float(STEPS), device=DEVICE),
            copy,
            torch.randn_like(weight),
        )
        for weight, gradient, copy in of_a_network()
    ]


def ours(entries):
    """One launch for the steps, and one for every 32 tensors of the same types."""
    rate, decay = (torch.tensor(value, device=DEVICE) for value in (RATE, AVERAGE_DECAY))
    settings = AdamSettings(rate, BETAS, EPSILON, WEIGHT_DECAY, average_decay=decay)
    steps = [entry.step for entry in entries]

    def run():
        advance(steps)
        adamw(entries, settings)

    return run


def pytorch(entries):
    """What autocast, PyTorch's fused AdamW and three foreach passes do."""
    weights = [torch.nn.Parameter(entry.weight) for entry in entries]
    rate = torch.tensor(RATE, device=DEVICE) if ON_GPU else RATE
    optimizer = torch.optim.AdamW(weights, rate, BETAS, EPSILON, WEIGHT_DECAY, fused=True, capturable=ON_GPU)
    for weight, entry in zip(weights, entries, strict=True):
        optimizer.state[weight] |= {"step": entry.step, "exp_avg": entry.momentum, "exp_avg_sq": entry.square}
    update = with_casts(entries, optimizer)
    averages, plain = [entry.average for entry in entries], [entry.weight for entry in entries]
    decay = torch.tensor(AVERAGE_DECAY, device=DEVICE)

    def run():
        update()
        torch._foreach_sub_(averages, plain)
        torch._foreach_mul_(averages, decay)
        torch._foreach_add_(averages, plain)

    return run


PROVIDERS = {"vnet_fast": ours, "PyTorch": pytorch}


def check(make):
    """Raises AssertionError if an output differs from that of the formula in float64."""
    entries = tensors()
    before = [AdamWeights(*(None if tensor is None else tensor.double() for tensor in entry)) for entry in entries]
    make(entries)()
    for entry, old in zip(entries, before, strict=True):
        momentum = BETAS[0] * old.momentum + (1 - BETAS[0]) * old.gradient
        square = BETAS[1] * old.square + (1 - BETAS[1]) * old.gradient**2
        root = (square / (1 - BETAS[1] ** (STEPS + 1))).sqrt() + EPSILON
        weight = (1 - RATE * WEIGHT_DECAY) * old.weight - RATE / (1 - BETAS[0] ** (STEPS + 1)) * momentum / root
        average = weight + AVERAGE_DECAY * (old.average - weight)
        expected = {"momentum": momentum, "square": square, "weight": weight, "average": average}
        for name, value in expected.items():
            torch.testing.assert_close(getattr(entry, name).double(), value, rtol=1e-5, atol=1e-6)
        assert entry.copy is None or torch.equal(entry.copy, entry.weight.to(DTYPE))


def traffic_of(entries):
    """Bytes that an update must move: it reads and writes four tensors, reads gradients and writes copies."""
    return sum(
        8 * entry.weight.nbytes + entry.gradient.nbytes + (0 if entry.copy is None else entry.copy.nbytes)
        for entry in entries
    )


@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_adamw(benchmark, provider):
    """Checks and times the update of a provider."""
    entries = tensors()
    group = title("AdamW with an average", entries)
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic_of(entries)), traffic_of(entries))
        return
    check(PROVIDERS[provider])
    measure(benchmark, group, provider, lambda: PROVIDERS[provider](entries), traffic_of(entries))
