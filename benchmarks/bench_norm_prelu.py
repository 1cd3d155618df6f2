"""PReLU(normalised x + residual) on the shape of several stages: ours, plain PyTorch, `torch.compile` and a copy."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_add_prelu import BATCH, DTYPE, STAGES
from benchmarks.measure import DEVICE, KERNEL_SHAPE, ON_GPU, PASSES, copy_of, measure, passes_of
from vnet_fast.ops.norm_prelu import norm_prelu
from vnet_fast.ops.norm_prelu_definition import Sets

EPS = 1e-5
KINDS = ("instance", "batch", "group")
# without a residual, and with one
MEASURED = ("up 1", "right 1", "left 2", "right 2", "left 4") if ON_GPU else ("up 1", "left 4")
LAYERS = {**STAGES, "up 1": (16, 0)}


def ours(kind, x, weight, bias, slope, residual=None):
    """The fused operation."""
    groups = 8 if kind == "group" else x.shape[1]
    return norm_prelu(x, weight, bias, slope, residual, Sets(groups, kind == "batch", EPS))[0]


def plain(kind, x, weight, bias, slope, residual=None):
    """The same as one would write it in PyTorch."""
    if kind == "batch":
        z = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    elif kind == "instance":
        z = F.instance_norm(x, None, None, weight, bias, eps=EPS)
    else:
        z = F.group_norm(x, 8, weight.to(x.dtype), bias.to(x.dtype), EPS)
    z = z if residual is None else z + residual
    return F.prelu(z.to(x.dtype), slope.to(x.dtype))


PROVIDERS = {"vnet_fast": ours, "PyTorch": plain, "torch.compile": torch.compile(plain)}


def tensors(layer):
    """x, weight, bias, slope, and the residual that every layer but the up-convolutions has."""
    channels, level = LAYERS[layer]
    shape = [length >> level for length in KERNEL_SHAPE]
    generator = torch.Generator().manual_seed(0)

    def volume():
        x = torch.randn(BATCH, channels, *shape, generator=generator).to(DTYPE)
        return x.contiguous(memory_format=torch.channels_last_3d).to(DEVICE).requires_grad_()

    vectors = [torch.rand(channels, generator=generator).to(DEVICE).requires_grad_() for _ in range(3)]
    return volume(), *vectors, *([] if layer.startswith("up") else [volume()])


def check(function, kind, inputs):
    """Raises AssertionError if output or gradients differ from those in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    outputs = function(kind, *inputs), plain(kind, *exact)
    grad = torch.randn_like(outputs[0])
    leaves = zip(outputs, (inputs, exact), strict=True)
    grads = [torch.autograd.grad(out, list(of), grad.to(out.dtype)) for out, of in leaves]
    for found, reference in zip((outputs[0], *grads[0]), (outputs[1], *grads[1]), strict=True):
        # two roundings, and those of z, which change the side of the activation that a few values are on; PyTorch's own
        # statistics on a CPU are wrong by 1e-3 and more
        allowed = 8 * torch.finfo(DTYPE).eps + (1e-4 if function is ours else 5e-3)
        assert (found.double() - reference).norm() <= allowed * reference.norm()


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("layer", MEASURED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_norm_prelu(benchmark, provider, kind, layer, pass_name):
    """Checks and times a pass of a provider."""
    inputs = tensors(layer)
    volume, residual = inputs[0].nbytes, inputs[0].nbytes * (len(inputs) > 4)
    # forward: x twice and the residual in, y out; backward: x and a gradient twice in, a gradient out, and with a
    # residual it in and its gradient out
    forward, backward = 3 * volume + residual, 5 * volume + 2 * residual
    traffic = {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
    group = f"norm_prelu {kind} {pass_name}, {layer}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    check(PROVIDERS[provider], kind, inputs)

    def function(*given):
        return PROVIDERS[provider](kind, *given)

    measure(
        benchmark, group, provider, lambda: passes_of(function, inputs, torch.randn_like(inputs[0]), pass_name), traffic
    )
