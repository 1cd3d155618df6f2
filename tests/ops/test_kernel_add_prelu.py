"""The fused bias + residual + PReLU kernels, against plain PyTorch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, MARKS, TYPES  # noqa: E402
from vnet_fast.kernels import add_prelu, partial_sums  # noqa: E402
from vnet_fast.kernels import add_prelu_layouts as layouts  # noqa: E402

pytestmark = MARKS
CHANNELS = [2, 3, 8, 16, 32, 256]
SIZES = ["one_voxel", "primes", "one_block", "one_block_and_one", "real"]
# bias, residual
FORMS = {
    "plain": (False, None),
    "bias": (True, None),
    "residual": (False, "full"),
    "bias_residual": (True, "full"),
    "one_channel": (False, "one_channel"),
    "bias_one_channel": (True, "one_channel"),
    "bias_one_channel_float32": (True, "one_channel_float32"),
}
# 2⁻⁴³ is below the smallest slope of every type, 2⁻¹³ below that of float16 alone; whole powers of
# two, so that they are the same number in every type but float16, where 2⁻⁴³ is zero
SLOPES = {
    "positive": [0.25, 0.5, 0.125],
    "above_one": [3.0, 1.5, 1.0],
    "negative": [-0.25, -2.0, -0.5],
    "zero": [0.0, -0.0, 0.0],
    "tiny": [2.0**-43, 2.0**-13, 2.0**-12],
    "tiny_negative": [-(2.0**-43), -(2.0**-13), -(2.0**-12)],
    "mixed": [0.25, 0.0, -0.25, 2.0**-13, -(2.0**-13), 1.0],
}


def block_rows(channels, dtype):
    """Voxels of a block of the forward kernel: a whole number of blocks of the backward kernel."""
    return layouts.tile(channels, dtype, layouts.FORWARD_LOADS)["ROWS"]


@pytest.fixture
def fresh_plans():
    """Launches are planned anew within the test, and after it."""

    def clear():
        layouts._forward_plan.cache_clear()
        layouts._backward_plan.cache_clear()

    clear()
    yield
    clear()


def shape_of(size, channels, dtype):
    rows = block_rows(channels, dtype)
    spatial = {
        "one_voxel": (1, 1, 1, 1),
        "primes": (1, 3, 5, 7),
        "one_block": (1, 1, 1, rows),
        "one_block_and_one": (1, 1, 1, rows + 1),
        "real": (2, 3, 4, 6),
    }[size]
    return spatial[0], channels, *spatial[1:]


def channels_last(tensor):
    return tensor.contiguous(memory_format=layouts.MEMORY_FORMAT[tensor.ndim])


def make_inputs(shape, dtype, form="bias_residual", slope="mixed"):
    """x, slope, bias, residual and grad_y; numbers of `dtype`, so that rounding them is no error."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator).to(dtype).to(DEVICE)

    channels = shape[1]
    has_bias, residual_form = FORMS[form]
    slopes = torch.tensor(SLOPES[slope], device=DEVICE)
    slopes = slopes.repeat(-(-channels // len(slopes)))[:channels]
    bias = draw(channels).float() if has_bias else None
    residual = None
    if residual_form == "full":
        residual = channels_last(draw(*shape))
    elif residual_form:
        residual = draw(shape[0], 1, *shape[2:])
        if residual_form == "one_channel_float32":
            residual = residual.float()
    return channels_last(draw(*shape)), slopes, bias, residual, channels_last(draw(*shape))


def definition(x, slope, bias, residual, *grads, dtype):
    """y, grad_x, grad_slope and grad_bias of plain PyTorch in `dtype`, in float64; and z."""
    x, slope, bias, residual, *grads = (
        None if tensor is None else tensor.detach().to(dtype) for tensor in (x, slope, bias, residual, *grads)
    )
    if bias is None:
        bias = torch.zeros_like(slope)
    for tensor in (x, slope, bias):
        tensor.requires_grad_()
    z = x + bias.view(-1, *[1] * (x.ndim - 2))
    if residual is not None:
        z = z + residual
    y = F.prelu(z, slope)
    gradients = torch.autograd.grad(y, (x, slope, bias), sum(grads[1:], grads[0]))
    return [tensor.detach().double() for tensor in (y, *gradients)], z.detach().double()


def voxels_of(x):
    return 0, *range(2, x.ndim)


def slope_floor(z, grad_y, dtype):
    """(C,): y is kept in its type, half an ulp of random sign in each term; the sum is in float32."""
    terms = torch.where(z > 0, 0, grad_y.double() * z)
    half_ulp = torch.finfo(dtype).eps / 2
    added = torch.finfo(torch.float32).eps * terms.abs().sum(voxels_of(z))
    return half_ulp * terms.square().sum(voxels_of(z)).sqrt() + added


def check(inputs):
    """Runs both kernels and compares with the definition; returns what they gave.

    Args:
        inputs: x, slope, bias, residual and one to three gradients of y.
    """
    x, slope, bias, residual, *grads = inputs
    assert add_prelu.supports(x, slope, bias, residual)
    y, negative = add_prelu.add_prelu(x, slope, bias, residual)
    grad_x, grad_slope, grad_bias = add_prelu.add_prelu_backward(grads, y, negative, slope)
    reference, z = definition(*inputs, dtype=torch.float64)
    plain, _ = definition(*inputs, dtype=x.dtype)

    assert y.dtype == grad_x.dtype == x.dtype
    assert grad_slope.dtype == grad_bias.dtype == torch.float32
    half_ulp = torch.finfo(x.dtype).eps / 2
    floors = {
        # rounding the exact result, and the deviation that the kernel's file states
        "y": half_ulp * reference[0].abs().amax() + layouts.SMALLEST_SLOPE[x.dtype] * z.abs().amax(),
        "grad_x": half_ulp * reference[1].abs().amax(),
        "grad_slope": slope_floor(z, sum(grad.double() for grad in grads), x.dtype).amax(),
        # exact terms, added in float32
        "grad_bias": torch.finfo(torch.float32).eps * reference[1].abs().sum(voxels_of(x)).amax(),
    }
    results = y, grad_x, grad_slope, grad_bias
    for (name, floor), ours, theirs, exact in zip(floors.items(), results, plain, reference, strict=True):
        error = (ours.double() - exact).abs().amax()
        allowed = 2 * (theirs - exact).abs().amax() + floor
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
    return results


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
def test_sizes(dtype, size, channels):
    check(make_inputs(shape_of(size, channels, dtype), dtype))


@pytest.mark.parametrize("channels", [1, 24, 512])
@pytest.mark.parametrize("dtype", TYPES)
def test_other_numbers_of_channels(dtype, channels):
    check(make_inputs((1, channels, 1, 1, 5), dtype))


# a tile does not divide the first; those of a network with base_channels of 48, 64 and 96
WIDE = [513, 768, pytest.param(1024, marks=pytest.mark.exhaustive), pytest.param(1536, marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("form", ["bias_residual", pytest.param("bias_one_channel", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("channels", WIDE)
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_wider_than_a_tile(dtype, channels, form):
    check(make_inputs((1, channels, 1, 1, 5), dtype, form=form))


def test_the_tiles_of_wide_rows():
    tiles = {channels: layouts._tiles(channels) for channels in (1, 16, 48, 512, 513, 640, 768, 1024, 1536, 2000)}
    assert tiles == {
        1: (8, 1),
        16: (16, 1),
        48: (64, 1),
        512: (512, 1),
        513: (512, 2),
        640: (128, 5),
        768: (256, 3),
        1024: (512, 2),
        1536: (512, 3),
        2000: (512, 4),
    }


def several_gradients(shape, dtype, count):
    """Gradients of y as its uses have them: dense, or half the channels of a wider tensor."""
    generator = torch.Generator().manual_seed(7)
    channels = shape[1]
    wide = (shape[0], 2 * channels, *shape[2:])
    grads = [
        channels_last(torch.randn(wide, generator=generator).to(dtype).to(DEVICE))[:, channels:] for _ in range(count)
    ]
    return [channels_last(grads[0]), *grads[1:]]


@pytest.mark.parametrize("channels", [3, 16, pytest.param(513, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("dtype", TYPES)
def test_several_gradients(dtype, count, channels):
    shape = 2, channels, 1, 3, 5
    check((*make_inputs(shape, dtype)[:4], *several_gradients(shape, dtype, count)))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_in_any_gradient(position):
    inputs = make_inputs((2, 16, 3, 5, 7), torch.float32, slope="positive")[:4]
    grads = several_gradients((2, 16, 3, 5, 7), torch.float32, 3)
    grads[position][1, 5, 2, 3, 4] = torch.nan
    y, negative = add_prelu.add_prelu(*inputs)
    results = add_prelu.add_prelu_backward(grads, y, negative, inputs[1])
    expected, _ = definition(*inputs, *grads, dtype=torch.float32)
    for ours, theirs in zip(results, expected[1:], strict=True):
        assert ours.isnan().any()
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_forms(dtype, form, channels):
    check(make_inputs((2, channels, 3, 5, 7), dtype, form=form))


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_slopes(dtype, slope):
    inputs = make_inputs((2, 16, 4, 6, 8), dtype, slope=slope)
    _, _, grad_slope, _ = check(inputs)
    # every channel for itself, to four standard deviations, whatever plain PyTorch's error is
    exact, z = definition(*inputs, dtype=torch.float64)
    assert ((grad_slope.double() - exact[2]).abs() <= 2 * slope_floor(z, inputs[-1], dtype)).all()


@pytest.mark.parametrize("part", [0.0, 0.75, -0.75])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_slope_near_zero_changes_y_by_less_than_its_rounding_error(dtype, part):
    smallest, precision = layouts.SMALLEST_SLOPE[dtype], torch.finfo(dtype)
    assert smallest <= precision.eps / 4
    x = make_inputs((2, 16, 4, 6, 8), dtype, form="plain")[0]
    slope = torch.full((16,), part * smallest, device=DEVICE)
    y, _ = add_prelu.add_prelu(x, slope)
    exact = F.prelu(x.double(), slope.double())
    # y may be subnormal itself, a multiple of tiny · eps
    allowed = smallest * x.double().abs() + precision.tiny * precision.eps / 2
    assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", TYPES[1:])
def test_half_precision_is_rounded_once(dtype):
    x, _, bias, residual, grad_y = make_inputs((2, 16, 4, 6, 8), dtype)
    # not a number of the narrow type
    slope = torch.full((16,), 0.3, device=DEVICE)
    y, negative = add_prelu.add_prelu(x, slope, bias, residual)
    grad_x, _, _ = add_prelu.add_prelu_backward([grad_y], y, negative, slope)
    reference, _ = definition(x, slope, bias, residual, grad_y, dtype=torch.float64)
    precision = torch.finfo(dtype)
    for ours, exact in ((y, reference[0]), (grad_x, reference[1])):
        # half an ulp of the result, the float32 sum of numbers below 8, half the smallest subnormal
        allowed = 0.5 * precision.eps * exact.abs() + 8 * torch.finfo(torch.float32).eps
        assert ((ours.double() - exact).abs() <= allowed + precision.tiny * precision.eps / 2).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [3, 16])
def test_programs_that_take_several_blocks(monkeypatch, fresh_plans, dtype, channels):
    monkeypatch.setattr(layouts, "MAX_BACKWARD_PROGRAMS", 5)
    monkeypatch.setattr(partial_sums, "PARTIAL_TILE", (2, 8))
    rows = block_rows(channels, dtype)
    check(make_inputs((1, channels, 1, 5, rows + 1), dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_zero_is_on_the_side_of_the_slope(dtype):
    x = channels_last(torch.zeros(1, 16, 2, 3, 4, dtype=dtype, device=DEVICE))
    slope = torch.full((16,), 0.25, device=DEVICE)
    y, negative = add_prelu.add_prelu(x, slope)
    grad_x, grad_slope, grad_bias = add_prelu.add_prelu_backward([torch.ones_like(x)], y, negative, slope)
    assert (y == 0).all()
    assert (negative == 255).all()
    assert (grad_x == 0.25).all()
    assert (grad_slope == 0).all()
    assert (grad_bias == 24 * 0.25).all()


@pytest.mark.parametrize("where", ["x", "residual", "bias", "grad_y"])
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_goes_where_plain_pytorch_has_it(dtype, where):
    inputs = make_inputs((2, 16, 3, 5, 7), dtype, slope="positive")
    x, slope, bias, residual, grad_y = inputs
    if where == "bias":
        bias[5] = torch.nan
    else:
        {"x": x, "residual": residual, "grad_y": grad_y}[where][1, 5, 2, 3, 4] = torch.nan
    y, negative = add_prelu.add_prelu(x, slope, bias, residual)
    results = y, *add_prelu.add_prelu_backward([grad_y], y, negative, slope)
    expected, _ = definition(*inputs, dtype=dtype)
    assert any(result.isnan().any() for result in results)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


def test_the_sums_of_several_layers_have_the_bits_of_their_own(monkeypatch):
    monkeypatch.setattr(partial_sums, "_tables", {})
    shapes = {16: (2, 3, 5, 7), 3: (1, 2, 3, 4), 24: (1, 10, 10, 5)}
    layers, alone, size = [], [], 0
    memory = torch.empty(1 << 20, device=DEVICE)
    for channels, (batch, *spatial) in shapes.items():
        x, slope, bias, residual, grad_y = make_inputs((batch, channels, *spatial), torch.bfloat16)
        y, negative = add_prelu.add_prelu(x, slope, bias, residual)
        expected = add_prelu.add_prelu_backward([grad_y], y, negative, slope)
        shape = add_prelu.forward_plan(x, slope, bias, residual).partials
        partials = memory[size : size + math.prod(shape)].view(shape)
        assert torch.equal(add_prelu.add_prelu_backward_partials([grad_y], y, negative, slope, partials), expected[0])
        layers.append((size, *shape[1:], channels))
        alone.append(expected[1:])
        size += partials.numel()
    for capturing in (True, False):
        # during a capture no table is copied; one that is there is used
        monkeypatch.setattr(partial_sums, "is_capturing", lambda tensor, capturing=capturing: capturing)
        together = add_prelu.sum_all_partials(memory, tuple(layers))
        assert bool(partial_sums._tables) != capturing
        for ours, theirs in zip(together, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    monkeypatch.setattr(partial_sums, "is_capturing", lambda tensor: True)
    monkeypatch.setattr(partial_sums, "sum_partials", None)
    add_prelu.sum_all_partials(memory, tuple(layers))


def test_two_runs_are_bit_equal():
    inputs = make_inputs((2, 32, 4, 6, 8), torch.bfloat16)
    for first, second in zip(check(inputs), check(inputs), strict=True):
        assert torch.equal(first, second)


def test_bits_are_packed_along_the_channels():
    x = channels_last(torch.ones(1, 11, 1, 1, 2, device=DEVICE))
    x[0, [0, 9], 0, 0, 0] = -1
    x[0, 7, 0, 0, 1] = -1
    _, negative = add_prelu.add_prelu(x, torch.ones(11, device=DEVICE))
    inside = torch.tensor([255, 0b111], dtype=torch.uint8, device=DEVICE)
    assert (negative & inside).tolist() == [[1, 2], [128, 0]]


@pytest.mark.parametrize(
    ("hip", "target"), [(None, ("cuda", 90, 32)), ("6.4", ("hip", "gfx942", 64))], ids=["CUDA", "ROCm"]
)
def test_options_are_those_that_the_backend_knows(monkeypatch, fresh_plans, hip, target):
    """Triton raises a KeyError for others."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    monkeypatch.setattr(torch.version, "hip", hip)
    x, slope, *_, grad_y = make_inputs((2, 16, 3, 5, 7), torch.bfloat16)
    known = make_backend(GPUTarget(*target)).parse_options({}).__dict__
    parameters = [
        add_prelu._add_prelu_forward_kernel.fn.__code__.co_varnames,
        add_prelu._add_prelu_backward_kernel.fn.__code__.co_varnames,
    ]
    plans = add_prelu.forward_plan(x, slope), layouts.backward_plan([grad_y], x)
    options = [set(plan.constants) - set(names) for plan, names in zip(plans, parameters, strict=True)]
    assert all(names <= set(known) for names in options)
    assert ("maxnreg" in options[1]) == (hip is None)
