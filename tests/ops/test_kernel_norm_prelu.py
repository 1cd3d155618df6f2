"""The fused normalisation + residual + PReLU kernels, against plain PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, MARKS, surrounded  # noqa: E402
from vnet_fast.kernels import norm_prelu as kernels  # noqa: E402
from vnet_fast.kernels import norm_prelu_layouts as layouts  # noqa: E402
from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition  # noqa: E402

pytestmark = MARKS
EPS = 1e-5
# groups for a number of channels, whether across samples
KINDS = {
    "instance": lambda channels: Sets(channels, False, EPS),
    "batch": lambda channels: Sets(channels, True, EPS),
    "group": lambda channels: Sets({2: 1, 20: 4, 600: 6}.get(channels, 2), False, EPS),
}
# kind, residual, shape: ragged rows, one voxel, several tiles of channels
FORMS = [
    ("instance", "one", (2, 16, 3, 5, 7)),
    ("batch", "full", (2, 16, 3, 5, 7)),
    ("group", "full", (2, 20, 3, 5, 7)),
    ("batch", None, (1, 8, 1, 1, 1)),
    ("instance", "full", (1, 16, 1, 1, 1)),
    ("instance", None, (2, 2, 9, 10, 11)),
    ("batch", "one", (3, 20, 7, 9, 11)),
    ("group", "one", (2, 2, 9, 10, 11)),
    ("group", None, (2, 600, 2, 3, 2)),
    ("batch", "full", (2, 600, 2, 3, 2)),
    ("instance", None, (2, 16, 17, 33)),
]
FIRST_RING = [
    (FORMS[0], torch.bfloat16),
    (FORMS[1], torch.float32),
    (FORMS[2], torch.bfloat16),
    (FORMS[4], torch.bfloat16),
]
CASES = [
    pytest.param(*form, dtype, marks=[pytest.mark.exhaustive] * ((form, dtype) not in FIRST_RING))
    for form in FORMS
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
]
NAMES = ("y", "grad_x", "grad_weight", "grad_bias", "grad_slope", "grad_residual")


def channels_last(tensor):
    return tensor.contiguous(memory_format=layouts.MEMORY_FORMAT[tensor.ndim])


def make_inputs(shape, dtype, residual, mean=3.0):
    """x, weight, bias, slope, residual and grad_y; numbers of `dtype`, so that rounding them is no error."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator)

    channels = shape[1]
    x = channels_last((draw(*shape) * 2 + mean).to(dtype))
    weight, bias, slope = draw(channels), draw(channels), draw(channels)
    other = None
    if residual:
        other = draw(shape[0], channels if residual == "full" else 1, *shape[2:]).to(dtype)
        other = channels_last(other) if residual == "full" else other
    tensors = x, weight, bias, slope, other, channels_last(draw(*shape).to(dtype))
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def by_kernels(inputs, sets):
    """Output, gradients and statistics of the kernels, in float64."""
    *leaves, grad_y = inputs
    assert kernels.supports(*leaves, sets)
    y, mean, variance = kernels.norm_prelu(*leaves, sets)
    grad_x, grad_residual, *vectors = kernels.norm_prelu_backward(grad_y, *leaves, mean, variance, sets)
    results = (y, grad_x, *vectors, grad_residual)
    assert [result.dtype for result in results[:2]] == [inputs[0].dtype] * 2
    found = dict(zip(NAMES, results, strict=True)) | {"mean": mean, "variance": variance}
    return {name: value.double() for name, value in found.items() if value is not None}


def by_pytorch(inputs, sets, dtype):
    """The same of PyTorch's own operations in `dtype`, in float64."""
    x, weight, bias, slope, residual, grad_y = (None if t is None else t.to(dtype) for t in inputs)
    leaves = [t.requires_grad_() for t in (x, weight, bias, slope)]
    if sets.size(x) == 1:
        # PyTorch refuses a single value
        z = x * 0 + bias.reshape(-1, *[1] * (x.ndim - 2))
    elif sets.across_samples:
        z = F.batch_norm(x, None, None, weight, bias, True, 0.0, sets.eps)
    else:
        z = F.group_norm(x, sets.groups, weight, bias, sets.eps)
    if residual is not None:
        # its gradient is that of what it is added to
        residual = residual.expand(x.shape).clone().requires_grad_(residual.shape == x.shape)
        z = z + residual
    y = F.prelu(z, slope)
    if residual is not None and residual.requires_grad:
        leaves.append(residual)
    grads = torch.autograd.grad(y, leaves, grad_y, materialize_grads=True)
    return {name: value.detach().double() for name, value in zip(NAMES, (y, *grads), strict=False)}


@pytest.mark.parametrize(("kind", "residual", "shape", "dtype"), CASES, ids=str)
def test_as_exact_as_pytorch(kind, residual, shape, dtype):
    sets = KINDS[kind](shape[1])
    inputs = make_inputs(shape, dtype, residual)
    found = by_kernels(inputs, sets)
    exact, own = by_pytorch(inputs, sets, torch.float64), by_pytorch(inputs, sets, dtype)
    assert exact.keys() == found.keys() - {"mean", "variance"}
    definition = norm_prelu_definition(*(None if t is None else t.double() for t in inputs[:-1]), sets)
    torch.testing.assert_close(definition, exact["y"], rtol=1e-9, atol=1e-9)
    for name, value in exact.items():
        error, allowed = (found[name] - value).abs().max(), 2 * (own[name] - value).abs().max()
        floor = 8 * torch.finfo(torch.float32 if value.ndim == 1 else dtype).eps * value.abs().max()
        if name == "grad_x" and value.abs().max() < 1e-6:
            # of a single value nothing is left but rounding of float32, which 1 / sqrt(eps) magnifies
            floor = 8 * torch.finfo(torch.float32).eps / EPS**0.5
        assert error <= allowed + floor, name


@pytest.mark.parametrize(("mean", "groups"), [(0.0, 8), (1e4, 2), (-1e6, 8)])
def test_statistics_of_values_far_from_zero(mean, groups, monkeypatch):
    """Voxels in several tiles for each program, the first of them an outlier."""
    if DEVICE == "cpu":
        monkeypatch.setattr(layouts, "MAX_PROGRAMS", 2)
        layouts._plan_of.cache_clear()
    shape = (1, 8, 5, 11, 17) if DEVICE == "cpu" else (1, 8, 64, 128, 128)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    x[:, :, 0, 0, 0] += 10
    x = channels_last(x.to(DEVICE))
    vector = torch.ones(8, device=DEVICE)
    _, found_mean, found_variance = kernels.norm_prelu(x, vector, vector, vector, None, Sets(groups, False, EPS))
    layouts._plan_of.cache_clear()
    values = x.double().reshape(groups, -1)
    variance, exact_mean = torch.var_mean(values, 1, correction=0)
    ulp = torch.finfo(torch.float32).eps
    # as far as the shift, which is the outlier, is from the mean
    assert (found_mean[0] - exact_mean).abs().max() <= ulp * abs(mean) + 4 * ulp * 10
    # the difference of means of squares would be off by 1e-7 mean²
    assert (found_variance[0] / variance - 1).abs().max() <= 1e-5


def test_a_slice_is_written_and_nothing_beside_it():
    """Two runs, which have the same bits."""
    inputs = make_inputs((2, 8, 3, 5, 7), torch.float32, None)
    sets = KINDS["batch"](8)
    expected, *statistics = kernels.norm_prelu(*inputs[:-1], sets)
    wide = channels_last(torch.full((2, 24, 3, 5, 7), 7.0, device=DEVICE))
    kernels.norm_prelu(*inputs[:-1], sets, wide[:, 8:16])
    assert torch.equal(wide[:, 8:16], expected)
    assert bool((wide[:, :8] == 7).all() and (wide[:, 16:] == 7).all())
    # and the gradient of a slice is read in place
    wide[:, 8:16] = inputs[-1]
    of_slice, of_whole = (
        kernels.norm_prelu_backward(grad, *inputs[:-1], *statistics, sets) for grad in (wide[:, 8:16], inputs[-1])
    )
    assert all(torch.equal(a, b) for a, b in zip(of_slice, of_whole, strict=True) if a is not None)


def test_nothing_beside_the_tensors_is_read():
    inputs = make_inputs((1, 20, 3, 1, 7), torch.float32, "full")
    sets = KINDS["group"](20)
    expected = by_kernels(inputs, sets)
    rows = [surrounded(t.movedim(1, -1).flatten(0, -2)) if t.ndim > 1 else surrounded(t) for t in inputs]
    placed = [
        new.view(*old.movedim(1, -1).shape).movedim(-1, 1) if old.ndim > 1 else new
        for new, old in zip(rows, inputs, strict=True)
    ]
    found = by_kernels(placed, sets)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("place", ["x", pytest.param("grad_y", marks=pytest.mark.exhaustive)])
def test_nan_stays_visible(place):
    inputs = make_inputs((1, 8, 2, 3, 4), torch.float32, None)
    inputs[0 if place == "x" else -1][0, 3, 0, 0, 0] = torch.nan
    found = by_kernels(inputs, KINDS["instance"](8))
    if place == "x":
        assert found["y"][:, 3].isnan().all()
        assert found["grad_slope"][3].isnan()
    assert found["grad_x"][:, 3].isnan().all()
    assert found["grad_weight"][3].isnan()
    assert not found["grad_x"][:, :3].isnan().any()


def test_other_layouts_are_refused():
    x, *vectors, _, _ = make_inputs((2, 8, 3, 4, 5), torch.float32, None)
    sets = KINDS["instance"](8)
    assert kernels.supports(x, *vectors, None, sets)
    assert not kernels.supports(x.contiguous(), *vectors, None, sets)
    assert not kernels.supports(x.double(), *vectors, None, sets)
    assert not kernels.supports(x, *vectors, None, sets._replace(groups=3))
    assert not kernels.supports(x, vectors[0][::2].repeat(2)[::2], *vectors[1:], None, sets)
