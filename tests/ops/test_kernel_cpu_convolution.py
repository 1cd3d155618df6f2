"""The CPU's kernels of minimal filtering against float64, as compiled for each set of instructions."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vnet_fast.kernels import cpu_convolution as kernels
from vnet_fast.kernels import cpu_library as compiled
from vnet_fast.ops import cpu_library

LAST = torch.channels_last_3d
# of the norm of a result: the largest found over all cases is about half; a direct sum has 1e-6
BOUNDS = {1: 2e-5, 2: 4e-5, 4: 8e-5}
# (N, C, K, D, H, W): a voxel, primes, a tile and one more, several blocks, each kind of vector and panel
SHAPES = [
    (1, 8, 8, 1, 1, 1),
    (2, 8, 16, 7, 5, 3),
    (1, 16, 8, 4, 4, 4),
    (1, 16, 16, 5, 5, 5),
    (1, 24, 40, 3, 9, 17),
    (2, 32, 32, 5, 18, 11),
    (1, 64, 32, 9, 16, 33),
    (1, 16, 136, 8, 17, 16),
]
FEW = [SHAPES[1], SHAPES[5]]


def case(shape, dtype=torch.float32, taps=5):
    n, c, k, *size = shape
    generator = torch.Generator().manual_seed(0)
    x, grad = (
        torch.randn(n, channels, *size, generator=generator).to(dtype).contiguous(memory_format=LAST)
        for channels in (c, k)
    )
    weight = torch.randn(k, c, *[taps] * 3, generator=generator) * (2 / (taps**3 * c)) ** 0.5
    return x, weight.contiguous(memory_format=LAST), grad


def filtered(library, x, weight, depth, **operands):
    transformed = kernels.transform_weight(library, weight, depth)
    return kernels.convolve(library, x, transformed, *weight.shape[:3:2], depth, **operands)[0]


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def exact_results(x, weight, grad):
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = F.conv3d(x, weight, None, 1, weight.shape[2] // 2)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad.double())


def gradients(library, x, weight, grad, depth):
    mirrored = kernels.transform_weight(library, weight, depth, True)
    grad_x, _ = kernels.convolve(library, grad, mirrored, *weight.shape[1:3], depth)
    return grad_x, kernels.weight_gradient(library, x, grad, weight.shape[2], depth)


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("taps", kernels.TAPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(library, shape, taps, depth):
    x, weight, grad = case(shape, taps=taps)
    found = filtered(library, x, weight, depth), *gradients(library, x, weight, grad, depth)
    for result, exact in zip(found, exact_results(x, weight, grad), strict=True):
        assert result.shape == exact.shape
        assert result.is_contiguous(memory_format=LAST)
        assert error(result, exact) <= BOUNDS[depth]


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("taps", kernels.TAPS)
@pytest.mark.parametrize("shape", FEW, ids=str)
def test_half_precision_in_memory_is_rounded_once(library, shape, taps, depth):
    x, weight, grad = case(shape, torch.bfloat16, taps)
    exact, exact_x, exact_weight = exact_results(x, weight, grad)
    grad_x, grad_weight = gradients(library, x, weight, grad, depth)
    eps = torch.finfo(torch.bfloat16).eps
    for result, wanted in ((filtered(library, x, weight, depth), exact), (grad_x, exact_x)):
        assert result.dtype == torch.bfloat16
        # a result that is near the middle of two may go either way
        nearest = wanted.to(torch.bfloat16)
        assert (result != nearest).float().mean() < 0.01
        assert (result.double() - wanted).abs().max() <= eps * wanted.abs().max()
    assert error(grad_weight, exact_weight) <= BOUNDS[depth]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", kernels.TAPS)
@pytest.mark.parametrize("shape", FEW, ids=str)
def test_the_epilogue(library, shape, taps, dtype):
    """Bias, residual and PReLU with positive, zero and negative slopes, and the bits of what is not positive."""
    x, weight, residual = case(shape, dtype, taps)
    k = len(weight)
    bias, slope = torch.linspace(-1, 1, k), torch.linspace(-0.5, 0.5, k)
    slope[k // 2] = 0
    negative = torch.full((residual.numel() // 8,), 255, dtype=torch.uint8)
    y = filtered(library, x, weight, 4, bias=bias, residual=residual, slope=slope, negative=negative)
    z = F.conv3d(x.double(), weight.double(), bias.double(), 1, taps // 2) + residual.double()
    exact = torch.where(z > 0, z, z * slope.double().reshape(-1, 1, 1, 1))
    tolerance = BOUNDS[4] if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert error(y, exact) <= tolerance
    bits = (negative[:, None] >> torch.arange(8)) & 1
    found = bits.bool().reshape(x.shape[0], *x.shape[2:], k).permute(0, 4, 1, 2, 3)
    assert ((found != (z <= 0)) & (z.abs() > 1e-4)).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", kernels.TAPS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 5, 18, 11), (2, 1, 8, 3, 4, 37), (2, 2, 16, 1, 1, 1), (1, 3, 24, 4, 5, 40)], ids=str
)
def test_a_layer_of_few_channels(library, shape, taps, dtype):
    """Direct sums, within twice the error of PyTorch's."""
    x, weight, grad = case(shape, dtype, taps)
    k = shape[2]
    bias, slope, residual = torch.linspace(-1, 1, k), torch.linspace(-0.5, 0.5, k), x[:, :1].contiguous()
    floor = 2 * torch.finfo(dtype).eps
    exact, _, exact_weight = exact_results(x, weight, grad)
    plain = F.conv3d(x.float(), weight, None, 1, taps // 2)
    y = kernels.first_layer(library, x, weight)
    assert y.dtype == dtype
    assert error(y, exact) <= 2 * error(plain, exact) + floor
    z = exact + bias.double().reshape(-1, 1, 1, 1) + residual.double()
    activated = torch.where(z > 0, z, z * slope.double().reshape(-1, 1, 1, 1))
    negative = torch.zeros(y.numel() // 8, dtype=torch.uint8)
    found = kernels.first_layer(library, x, weight, bias, residual, slope, negative)
    assert error(found, activated) <= 2 * error(plain, exact) + floor
    bits = ((negative[:, None] >> torch.arange(8)) & 1).bool().reshape(x.shape[0], *x.shape[2:], k)
    assert ((bits.permute(0, 4, 1, 2, 3) != (z <= 0)) & (z.abs() > 1e-4)).sum() == 0
    grad_weight = kernels.first_layer_gradient(library, x, grad, taps)
    assert grad_weight.is_contiguous(memory_format=LAST)
    assert error(grad_weight, exact_weight) <= 2e-6
    assert torch.equal(kernels.first_layer_gradient(library, x, grad, taps), grad_weight)


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("taps", kernels.TAPS)
def test_nothing_is_left_unwritten_and_nothing_else_is_written(widest, taps, depth, monkeypatch):
    """Memory is full of NaN before, and there are canaries on both sides of each result."""
    empty, kept = torch.empty, []

    def poisoned(size, *, memory_format=torch.contiguous_format, dtype=torch.float32):
        length = torch.Size([size] if isinstance(size, int) else size).numel()
        memory = torch.full((length + 128,), float("nan"), dtype=dtype)
        memory[:64] = memory[-64:] = 7
        kept.append(memory)
        if isinstance(size, int):
            return memory[64:-64]
        return memory[64:-64].as_strided(size, empty(size, memory_format=memory_format).stride())

    x, weight, grad = case((2, 16, 24, 6, 7, 9), taps=taps)
    expected = filtered(widest, x, weight, depth), kernels.weight_gradient(widest, x, grad, taps, depth)
    monkeypatch.setattr(kernels.torch, "empty", poisoned)
    found = filtered(widest, x, weight, depth), kernels.weight_gradient(widest, x, grad, taps, depth)
    assert len(kept) == 3
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert all((memory[:64] == 7).all() and (memory[-64:] == 7).all() for memory in kept)


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("channels", [32, 136], ids=["blocks of a thread", "shared blocks"])
def test_the_same_bits_for_the_same_threads(widest, threads, depth, channels):
    """And about the same values for others; the output is the same for all."""
    x, weight, grad = case((1, 16, channels, 9, 16, 20))
    results = {}
    for count in (1, 2, 5):
        threads(count)
        runs = [
            (filtered(widest, x, weight, depth), kernels.weight_gradient(widest, x, grad, 5, depth)) for _ in range(3)
        ]
        assert all(torch.equal(run[0], runs[0][0]) and torch.equal(run[1], runs[0][1]) for run in runs)
        results[count] = runs[0]
    for count in (2, 5):
        assert torch.equal(results[count][0], results[1][0])
        assert error(results[count][1], results[1][1].double()) <= BOUNDS[depth]


def test_callers_in_several_threads_do_not_disturb_each_other(widest):
    work = [case((1, 16, 16, size, 8, 12)) for size in (3, 5, 8, 9)]
    expected = [filtered(widest, x, weight, 4) for x, weight, _ in work]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: filtered(widest, *work[i % 4][:2], 4), range(40)))
    assert all(torch.equal(result, expected[i % 4]) for i, result in enumerate(found))


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("taps", kernels.TAPS)
def test_a_common_offset_does_no_harm(widest, taps, depth):
    x, weight, _ = case((1, 16, 16, 8, 12, 12), taps=taps)
    exact = F.conv3d(x.double() + 1000, weight.double(), None, 1, taps // 2)
    plain = F.conv3d(x + 1000, weight, None, 1, taps // 2)
    assert error(filtered(widest, (x + 1000).contiguous(memory_format=LAST), weight, depth), exact) < 2 * error(
        plain, exact
    )


@pytest.mark.parametrize("place", [(8, 12, 12), (9, 13, 14), (7, 16, 11), (8, 15, 17)], ids=str)
@pytest.mark.parametrize(("taps", "share"), [(3, 6e-7), (5, 2e-7)])
@pytest.mark.parametrize("ratio", [100, 1e4])
def test_a_single_large_value_is_reported_and_harms_its_neighbours_as_documented(widest, ratio, taps, share, place):
    """Wherever it lies in a tile."""
    x, weight, _ = case((1, 16, 16, 16, 28, 28), taps=taps)
    x[(slice(None), slice(None), *place)] = ratio
    y, found = kernels.convolve(widest, x, kernels.transform_weight(widest, weight, 4), 16, taps, 4)
    assert found == pytest.approx((x.abs().max() / x.double().abs().mean()).item(), rel=1e-4)
    difference = y.double() - F.conv3d(x.double(), weight.double(), None, 1, taps // 2)

    def around(reach):
        return (slice(None), slice(None), *(slice(at - reach, at + reach + 1) for at in place))

    # beyond the reach of the sum
    difference[around(taps // 2)] = 0
    near = difference[around(4)].square().mean().sqrt().item()
    assert near <= 2e-5 + share * ratio
    assert difference[:, :, :1].square().mean().sqrt().item() <= 2e-5


@pytest.mark.parametrize("taps", kernels.TAPS)
def test_infinity_and_nan_are_not_lost(widest, taps):
    x, weight, _ = case((1, 16, 16, 8, 12, 12), taps=taps)
    for value in (float("inf"), float("nan")):
        x[0, 3, 4, 5, 6] = value
        y, _ = kernels.convolve(widest, x, kernels.transform_weight(widest, weight, 4), 16, taps, 4)
        # every voxel that the value reaches
        where = (slice(at - taps // 2, at + taps // 2 + 1) for at in (4, 5, 6))
        assert not y[(0, slice(None), *where)].isfinite().any()


def test_what_is_supported():
    x, weight, _ = case((1, 16, 8, 3, 3, 3))
    assert kernels.supports(x, weight)
    assert kernels.supports(x.bfloat16(), weight)
    assert not kernels.supports(x.half(), weight)
    assert not kernels.supports(x, weight.bfloat16())
    assert not kernels.supports(x[:, :12], weight[:, :12])
    assert not kernels.supports(x, weight[:4])
    assert kernels.supports(x[:, :3], weight[:, :3])
    assert not kernels.supports(x[:, :5], weight[:, :5])
    assert kernels.supports(x, weight[..., :3, :3, :3])
    assert not kernels.supports(x, weight[..., :4, :4, :4])
    assert not kernels.supports(x, weight[..., :3, :, :])
    assert not kernels.supports(x[:0], weight)
    # which PyTorch refuses, and ours would read beyond
    assert not kernels.supports(x[:, :8], weight)
    assert not kernels.supports(x[0], weight)
    assert not kernels.supports(x.to("meta"), weight)


needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C++ compiler")
# what Ubuntu's GCC does unless it is told not to; it moves arrays on the stack
HARDENED = ("-fstack-protector-strong", "-fstack-clash-protection")
OPTIMISED = tuple(flag for flag in compiled.FLAGS if flag != "-shared")
# lines for the messages; all that a debugger can ask for takes the compiler a fifth of its time
SANITIZED = ("-std=c++17", "-fopenmp", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
# the compiler makes vectors of 16 floats out of narrower ones where the processor has none
AS_AVX512 = "-DVNET_FAST_AS_AVX512"


def output_of_program(program, source, *flags):
    """What a program prints that is compiled from a source, a path or text."""
    given = {"input": source, "text": True} if isinstance(source, str) else {}
    name = ["-x", "c++", "-"] if given else [source]
    flags = [*compiled.targets()[cpu_library.target()], *flags, f"-I{compiled.SOURCES}"]
    subprocess.run([*compiled.find_compiler(), *flags, *name, "-o", program], check=True, timeout=600, **given)
    done = subprocess.run([program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    return done.stdout


@needs_compiler
@pytest.mark.parametrize("lanes", [8, 16])
def test_vectors_are_aligned_in_a_hardened_build(tmp_path, lanes):
    """Aligned instructions are as fast, but end the process at the first array that lies elsewhere."""
    source = f"""
#include <cstdio>
#include "weights.h"
int main() {{
    static float weight[125 * 256], out[64 * 5 * 256];
    for (float& value : weight) value = 1;
    transform_weight<Tiles<5, 1>, {lanes}>(weight, out, {lanes}, {lanes}, false, 1);
    puts(out[0] > 0 ? "positive" : "not positive");
}}
"""
    assert output_of_program(tmp_path / "check", source, *OPTIMISED, *HARDENED) == "positive\n"


@pytest.mark.exhaustive
@needs_compiler
@pytest.mark.parametrize(
    "flags",
    [(*SANITIZED, "-O1"), (*SANITIZED, "-O1", AS_AVX512), (*OPTIMISED, *HARDENED, AS_AVX512)],
    ids=["under the sanitizers", "under the sanitizers, as AVX-512", "in a hardened build, as AVX-512"],
)
def test_every_kernel_is_right_in_a_program(tmp_path, flags):
    """In a program of its own, because the address sanitizer has to be loaded first."""
    source = Path(__file__).with_name("check_cpu_kernels.cpp")
    assert output_of_program(tmp_path / "check", source, *flags) == "243 cases\n"
