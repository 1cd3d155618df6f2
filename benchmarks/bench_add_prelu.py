"""PReLU(x + bias + residual) on the shape of every stage: ours, plain PyTorch, `torch.compile` and a copy.

On a GPU also what a training pass saves: the gradients of several uses added by the kernel or by PyTorch, and the sums
of all layers in one launch or in one for each.
"""

import pytest
import torch

from benchmarks.measure import DEVICE, KERNEL_SHAPE, ON_GPU, PASSES, copy_of, measure, passes_of
from vnet_fast.ops.add_prelu import add_prelu
from vnet_fast.ops.dispatch import load_kernels

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BATCH = 2
# channels and level of the last activation of each stage; a level halves the sides of the one above
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
    """PReLU(x + bias + residual) as one would write it in PyTorch."""
    z = x + bias.to(x.dtype)[:, None, None, None] + residual
    return torch.nn.functional.prelu(z, slope.to(x.dtype))


PROVIDERS = {"vnet_fast": add_prelu, "PyTorch": plain, "torch.compile": torch.compile(plain)}


def tensors(stage):
    """x, slope, bias and residual of a stage. The residual of the first stage is the input, which has one channel."""
    channels, level = STAGES[stage]
    shape = [length >> level for length in KERNEL_SHAPE]
    generator = torch.Generator().manual_seed(0)

    def volume(width):
        x = torch.randn(BATCH, width, *shape, generator=generator).to(DTYPE)
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
    """Raises AssertionError if output or gradients differ from those in float64."""
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    outputs = function(*inputs), plain(*exact)
    leaves = [[t for t in tensors if t.requires_grad] for tensors in (inputs, exact)]
    grads = [torch.autograd.grad(out.sum(), tensors_) for out, tensors_ in zip(outputs, leaves, strict=True)]
    for ours, reference in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        # rounding of the result, and of float32 sums over the voxels in any order
        assert (ours.double() - reference).norm() <= (2 * torch.finfo(DTYPE).eps + 1e-5) * reference.norm()


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("stage", MEASURED)
@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_add_prelu(benchmark, provider, stage, pass_name):
    """Checks and times a pass of a provider."""
    inputs = tensors(stage)
    x, residual = inputs[0].nbytes, inputs[3].nbytes
    # forward: x and the residual in, y out; backward: the gradient and y in, the gradient of x out
    traffic = {"forward": 2 * x + residual, "backward": 3 * x, "both": 5 * x + residual}[pass_name]
    group = f"add_prelu {pass_name}, {stage}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    function = PROVIDERS[provider]
    check(function, inputs)
    grad = torch.randn_like(inputs[0])
    measure(benchmark, group, provider, lambda: passes_of(function, inputs, grad, pass_name), traffic)


def several_uses(stage, added_first):
    """A function of no arguments that runs the backward kernel for the three uses of a stage's output.

    The gradients are those of V-Net: one is dense, of the down-convolution, and two are halves of a wider tensor, in
    which the output is the skip.
    """
    torch.manual_seed(0)
    kernels = load_kernels("add_prelu")
    x, slope, *_ = (tensor.detach() for tensor in tensors(stage))
    y, negative = kernels.add_prelu(x, slope)
    halves = [torch.cat([x, torch.randn_like(x)], 1)[:, x.shape[1] :] for _ in range(2)]
    grads = [torch.randn_like(x), *halves]

    def run():
        summed = [grads[0] + (grads[1] + grads[2])] if added_first else grads
        return kernels.add_prelu_backward(summed, y, negative, slope)

    return run


@pytest.mark.skipif(not ON_GPU, reason="the kernels need a CUDA device")
@pytest.mark.parametrize("stage", ["left 1", "left 2", "left 3", "left 4"])
@pytest.mark.parametrize("provider", ["vnet_fast", "PyTorch adds"])
def bench_several_uses(benchmark, provider, stage):
    """Checks and times the backward pass of an output with three uses."""
    ours, added = several_uses(stage, False)(), several_uses(stage, True)()
    for result, expected in zip(ours, added, strict=True):
        # the sum of two gradients is rounded to their type, of three twice
        assert (result.float() - expected.float()).norm() <= 4 * torch.finfo(DTYPE).eps * expected.float().norm()
    traffic = 5 * tensors(stage)[0].nbytes
    group = f"add_prelu backward of three uses, {stage}, {str(DTYPE).removeprefix('torch.')}"
    measure(benchmark, group, provider, lambda: several_uses(stage, provider != "vnet_fast"), traffic)


def sums_of_layers(together):
    """A function of no arguments that sums the partial sums of 29 layers, as many as V-Net has."""
    torch.manual_seed(0)
    kernels = load_kernels("partial_sums")
    layers, size = [], 0
    for channels, programs in (
        [(16, 2048)] * 4 + [(32, 2048)] * 5 + [(64, 1024)] * 6 + [(128, 256)] * 7 + [(256, 64)] * 7
    ):
        layers.append((size, programs, channels, channels))
        size += 2 * programs * channels
    memory = torch.randn(size, device=DEVICE)
    partials = [memory[first:][: 2 * programs * width].view(2, programs, width) for first, programs, width, _ in layers]
    if together:
        return lambda: kernels.sum_all_partials(memory, tuple(layers))
    return lambda: [kernels.sum_partials(partial, layer[-1]) for partial, layer in zip(partials, layers, strict=True)]


@pytest.mark.skipif(not ON_GPU, reason="the kernels need a CUDA device")
@pytest.mark.parametrize("provider", ["one launch", "a launch for each layer"])
def bench_sums_of_layers(benchmark, provider):
    """Checks and times the sums of all layers."""
    together = sums_of_layers(True)()
    for ours, alone in zip(together, sums_of_layers(False)(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True))
    traffic = 4 * 2 * (2048 * (4 * 16 + 5 * 32) + 1024 * 6 * 64 + 256 * 7 * 128 + 64 * 7 * 256)
    measure(benchmark, "sums of 29 layers", provider, lambda: sums_of_layers(provider == "one launch"), traffic)
