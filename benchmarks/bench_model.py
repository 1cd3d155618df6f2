"""The network on the CPU: its layout and precision against plain PyTorch's, in one run."""

import os

import pytest
import torch

from vnet_fast import DiceLoss, VNet
from vnet_fast.step import choose_precision, mixed_precision

CPU = torch.device("cpu")
# VNET_FAST_BENCHMARK_SIZE=full measures the paper's volume: half a minute a round on 2 cores
SIZE = (64, 128, 128) if os.environ.get("VNET_FAST_BENCHMARK_SIZE") == "full" else (32, 64, 64)
ROUNDS = 3


def contiguous(model):
    """The same network in PyTorch's default layout."""
    model.memory_format = torch.contiguous_format
    return model.to(memory_format=torch.contiguous_format)


PROVIDERS = {
    "plain contiguous float32": (contiguous, "off"),
    "vnet_fast float32": (lambda model: model, "off"),
    "vnet_fast --amp": (lambda model: model, "auto"),
}


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return torch.randn(1, 1, *SIZE), (torch.rand(1, 1, *SIZE) > 0.9).to(torch.uint8)


def provided(name):
    torch.manual_seed(0)
    change, amp = PROVIDERS[name]
    return change(VNet()), choose_precision(amp, CPU)[0]


def check(logits, image):
    """Against the plain network in float32, before anything is timed."""
    model, _ = provided("plain contiguous float32")
    with torch.no_grad():
        expected = model(image)
    assert (logits.float() - expected).norm() <= 0.05 * expected.norm()


@pytest.mark.parametrize("name", PROVIDERS)
def bench_forward(benchmark, batch, name):
    model, dtype = provided(name)
    benchmark.group = f"forward, {'x'.join(map(str, SIZE))}, {torch.get_num_threads()} threads"
    benchmark.extra_info.update(torch=torch.__version__, precision=str(dtype or torch.float32))

    @torch.inference_mode()
    def run():
        with mixed_precision(CPU, dtype):
            return model(batch[0])

    check(run(), batch[0])
    benchmark.pedantic(run, rounds=ROUNDS)


@pytest.mark.parametrize("name", PROVIDERS)
def bench_forward_and_backward(benchmark, batch, name):
    model, dtype = provided(name)
    loss = DiceLoss.paper()
    benchmark.group = f"forward and backward, {'x'.join(map(str, SIZE))}, {torch.get_num_threads()} threads"
    benchmark.extra_info.update(torch=torch.__version__, precision=str(dtype or torch.float32))

    def run():
        model.zero_grad()
        with mixed_precision(CPU, dtype):
            logits = model(batch[0])
        loss(logits, batch[1]).backward()
        return logits

    check(run().detach(), batch[0])
    benchmark.pedantic(run, rounds=ROUNDS)
