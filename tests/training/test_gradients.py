"""Clipping of gradients: against PyTorch's, and in steps of every precision."""

import math

import pytest
import torch

from tests.ops.conftest import rounded_to_nearest  # noqa: F401 - a fixture
from tests.training.test_optimizer import BF16, FP16, by_definition, by_kernel  # noqa: F401 - fixtures
from vnet_fast import DiceLoss, VNet
from vnet_fast.training.gradients import divide, excess_of
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

SHAPES = [(3,), (2, 3, 5), (4, 1, 3, 3, 3)]
SHAPE = (16, 16, 32)


def gradients(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("largest", [0.5, 12.0, 1e6])
def test_as_pytorch_clips(largest):
    ours, weights = gradients(), [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for weight, gradient in zip(weights, gradients(), strict=True):
        weight.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(weights, largest)
    excess = excess_of(ours, largest)
    assert excess.item() == pytest.approx(max(1, norm.item() / largest), rel=1e-5)
    divide(ours, excess)
    for found, weight in zip(ours, weights, strict=True):
        torch.testing.assert_close(found, weight.grad, rtol=1e-5, atol=0)


def test_the_norm_is_of_all_types_together_and_not_rounded():
    mixed = [*gradients(), *gradients(BF16, 1), *gradients(FP16, 2)]
    exact = math.sqrt(sum(gradient.double().square().sum().item() for gradient in mixed))
    assert excess_of(mixed, exact / 3).item() == pytest.approx(3, rel=1e-5)
    divide(mixed, torch.tensor(4.0))
    for found, whole in zip(mixed, [*gradients(), *gradients(BF16, 1), *gradients(FP16, 2)], strict=True):
        assert found.dtype == whole.dtype
        assert torch.equal(found, whole / 4)


def test_the_norm_is_that_without_the_scale_of_the_loss():
    scaled = [1024 * gradient for gradient in gradients()]
    assert excess_of(scaled, 0.5, torch.tensor(1024.0)).item() == pytest.approx(excess_of(gradients(), 0.5).item())


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_does_not_look_finite_afterwards(value):
    bad = gradients()
    bad[1][0, 0, 0] = value
    divide(bad, excess_of(bad, 1.0))
    assert not bad[1].isfinite().all()


# In a step


def step_of(name="sgd", autocast=None, clip=None, scale=None):
    torch.manual_seed(0)
    model = VNet(base_channels=1)
    # without weight decay, an update is proportional to the gradient
    step = Step(model, DiceLoss.paper(), make_optimizer(model, name, 0.05, 0.9, 0.0), autocast, clip=clip)
    if scale:
        step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return step


def batch():
    image = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return image, (image > 0.5).to(torch.uint8)


def moved(step):
    """What a step adds to the weights."""
    before = [weight.detach().clone() for weight in step.model.parameters()]
    step(*batch())
    return [weight.detach() - old for weight, old in zip(step.model.parameters(), before, strict=True)]


@pytest.mark.parametrize(
    ("autocast", "scale"), [(None, None), (BF16, None), (FP16, 256.0)], ids=["float32", "half", "scaled"]
)
def test_a_step_updates_by_clipped_gradients(autocast, scale, request):
    """Also where the kernel of half-precision weights divides them, and where float16's scaler has multiplied them."""
    if autocast:
        request.getfixturevalue("by_definition")
    plain = step_of(autocast=autocast, scale=scale)
    whole = moved(plain)
    norm = math.sqrt(sum(leaf.grad.double().square().sum().item() for leaf in plain.optimizer.leaves())) / (scale or 1)
    clipped = step_of(autocast=autocast, scale=scale, clip=norm / 4)
    quarter = moved(clipped)
    assert bool(clipped.optimizer.half_weights) == bool(autocast)
    assert clipped.optimizer.excess is None
    for ours, theirs in zip(quarter, whole, strict=True):
        torch.testing.assert_close(ours, theirs / 4, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("autocast", [None, BF16], ids=["float32", "half"])
def test_adamw_averages_clipped_gradients(autocast, by_definition):  # noqa: F811
    """Its updates do not show how large gradients are."""
    plain = step_of("adamw", autocast)
    plain(*batch())
    norm = math.sqrt(sum(leaf.grad.double().square().sum().item() for leaf in plain.optimizer.leaves()))
    clipped = step_of("adamw", autocast, clip=norm / 4)
    clipped(*batch())
    assert clipped.optimizer.by_kernel
    assert clipped.optimizer.excess is None
    for name, factor in (("exp_avg", 4), ("exp_avg_sq", 16)):
        for ours, theirs in zip(clipped.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
            torch.testing.assert_close(factor * ours[name], theirs[name], rtol=1e-3, atol=1e-9)


def test_a_gradient_below_the_norm_is_left_alone():
    ours, plain = step_of("adamw", clip=1e6), step_of("adamw")
    for step in (ours, plain):
        for _ in range(2):
            step(*batch())
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_overflow_in_float16_is_still_seen(by_definition):  # noqa: F811
    step = step_of(autocast=FP16, clip=1.0, scale=4.0)
    step(*batch())
    before = [weight.detach().clone() for weight in step.model.parameters()]
    leaf = next(iter(step.optimizer.half_weights.copies.values()))
    leaf.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    step(*batch())
    assert step.scaler.get_scale() == 2.0
    assert all(torch.equal(a, b) for a, b in zip(step.model.parameters(), before, strict=True))
