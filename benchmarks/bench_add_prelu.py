"""PReLU(x + bias + residual) on the shape of every stage: ours, plain PyTorch, compiled, a copy."""

import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, PASSES, SIZE, copy_of, measure, passes_of
from vnet_fast.ops.add_prelu import add_prelu

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BATCH = 2
# channels and level of the last activation of each stage
STAGES = {
    "left 1": (16, 0),
    "right 1": (32, 0),
    "left 2": (32, 1),
    "right 2": (64, 1),
    "left 3": (64, 2),
    "right 3": (128, 2),
    "left 4": (128, 3),
    "right 4": (256, 3),
    "left 5": (256, 4),
}
MEASURED = STAGES if ON_GPU else {name: STAGES[name] for name in ("right 1", "left 4")}


def plain(x, slope, bias, residual):
    z = x + bias.to(x.dtype)[:, None, None, None] + residual
    return torch.nn.functional.prelu(z, slope.to(x.dtype))


PROVIDERS = {"vnet_fast": add_prelu, "PyTorch": plain, "torch.compile": torch.compile(plain)}


def tensors(stage):
    """x, slope, bias, residual; the residual of the first stage is the input, of one channel."""
    channels, level = STAGES[stage]
    size = [length >> level for length in SIZE]
    generator = torch.Generator().manual_seed(0)

    def volume(width):
        x = torch.randn(BATCH, width, *size, generator=generator).to(DTYPE)
        return x.contiguous(memory_format=torch.channels_last_3d).to(DEVICE)

    first = stage == "left 1"
    slope, bias = torch.full((channels,), 0.25), torch.randn(channels, generator=generator)
    return (
        volume(channels).requires_grad_(),
        slope.to(DEVICE).requires_grad_(),
        bias.to(DEVICE).requires_grad_(),
        volume(1 if first else channels).requires_grad_(not first),
    )


def check(function, inputs):
    """Output and gradients against float64, before anything is timed."""
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    outputs = function(*inputs), plain(*exact)
    leaves = [[t for t in tensors if t.requires_grad] for tensors in (inputs, exact)]
    grads = [torch.autograd.grad(out.sum(), each) for out, each in zip(outputs, leaves, strict=True)]
    for ours, reference in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        # rounding of the result, and of float32 sums over the voxels in whatever order
        assert (ours.double() - reference).norm() <= (2 * torch.finfo(DTYPE).eps + 1e-5) * reference.norm()


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("stage", MEASURED)
@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_add_prelu(benchmark, provider, stage, which):
    inputs = tensors(stage)
    size = inputs[0].numel() * inputs[0].element_size()
    residual = inputs[3].numel() * inputs[3].element_size()
    # forward: x and the residual in, y out; backward: the gradient and y in, the gradient of x out
    traffic = {"forward": 2 * size + residual, "backward": 3 * size, "both": 5 * size + residual}[which]
    group = f"add_prelu {which}, {stage}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    function = PROVIDERS[provider]
    check(function, inputs)
    grad = torch.randn_like(inputs[0])
    measure(benchmark, group, provider, lambda: passes_of(function, inputs, grad, which), traffic)
