"""Losses and networks under `torch.func` and in forward mode, where PyTorch sees plain operations."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import vnet_fast
from vnet_fast import VNet
from vnet_fast.compat import nnunet

SHAPE = (2, 3, 2, 3, 4)
ONE_HOT = {"to_onehot_y": True, "softmax": True}
LOSSES = {
    "dice": vnet_fast.DiceLoss(**ONE_HOT),
    "dice of sigmoids": vnet_fast.DiceLoss(to_onehot_y=True, sigmoid=True, include_background=False, batch=True),
    "dice, ce": vnet_fast.DiceCELoss(**ONE_HOT),
    "dice, focal": vnet_fast.DiceFocalLoss(**ONE_HOT),
    "tversky": vnet_fast.TverskyLoss(**ONE_HOT),
    "generalised dice": vnet_fast.GeneralizedDiceLoss(**ONE_HOT),
    "weighted ce": vnet_fast.WeightedCrossEntropy(),
    "nnU-Net's dice": nnunet.SoftDiceLoss(apply_nonlin=torch.nn.Softmax(1)),
    "nnU-Net's dice, ce": nnunet.DC_and_CE_loss({"batch_dice": True}, {}),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture
def inputs():
    """Logits, a direction and a target."""
    torch.manual_seed(0)
    logits, direction = torch.randn(2, *SHAPE, dtype=torch.float64)
    return logits, direction, torch.randint(SHAPE[1], (SHAPE[0], 1, *SHAPE[2:]))


def gradient(function, x):
    """By a backward pass."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@losses
def test_gradients(loss, inputs):
    logits, _, target = inputs
    expected = gradient(lambda x: loss(x, target), logits)
    assert expected.abs().max() > 0
    for transform in (grad, jacrev, jacfwd):
        torch.testing.assert_close(transform(loss)(logits, target), expected)


@losses
def test_derivatives_along_a_direction(loss, inputs):
    logits, direction, target = inputs
    expected = (gradient(lambda x: loss(x, target), logits) * direction).sum()
    torch.testing.assert_close(jvp(lambda x: loss(x, target), (logits,), (direction,))[1], expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, direction)
        torch.testing.assert_close(forward_ad.unpack_dual(loss(dual, target)).tangent, expected)


@losses
def test_second_derivatives(loss, inputs):
    logits, direction, target = (tensor[:1, ..., :1, :1, :2] for tensor in inputs)
    found = hessian(loss)(logits, target).reshape(logits.numel(), -1)
    step = 1e-4 * direction
    slopes = [gradient(lambda x: loss(x, target), logits + side * step) for side in (1, -1)]
    torch.testing.assert_close(
        found @ direction.flatten(), (slopes[0] - slopes[1]).flatten() / 2e-4, rtol=1e-5, atol=1e-8
    )


@losses
def test_each_sample_by_itself(loss, inputs):
    """Values and gradients of a batch whose samples are batches."""
    logits, _, target = (tensor.unsqueeze(1) for tensor in inputs)
    pairs = list(zip(logits, target, strict=True))
    torch.testing.assert_close(vmap(loss)(logits, target), torch.stack([loss(*pair) for pair in pairs]))
    expected = torch.stack([gradient(lambda x, y=y: loss(x, y), x) for x, y in pairs])
    torch.testing.assert_close(vmap(grad(loss))(logits, target), expected)


@pytest.fixture(params=[None, "instance", "batch", "group"], ids=str)
def network(request):
    """A network, as a function of weights and of an image of its sizes; its weights, and the image."""
    torch.manual_seed(0)
    model = VNet(base_channels=8, levels=2, norm=request.param, kernel_size=3).double()
    weights, image = dict(model.named_parameters()), torch.randn(2, 1, 4, 6, 4, dtype=torch.float64)
    buffers = dict(model.named_buffers())

    def run(weights, image):
        # batch norm moves its running statistics
        of_this = {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(model, (weights, of_this), (image,)).square().mean()

    return run, {name: weight.detach() for name, weight in weights.items()}, image


def test_gradients_of_weights(network):
    run, weights, image = network
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    expected = dict(zip(leaves, torch.autograd.grad(run(leaves, image), leaves.values()), strict=True))
    torch.testing.assert_close(grad(run)(weights, image), expected)


def test_derivatives_of_a_network_along_a_direction(network):
    run, weights, image = network
    torch.manual_seed(1)
    directions = {name: torch.randn_like(weight) for name, weight in weights.items()}, torch.randn_like(image)
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    x = image.clone().requires_grad_()
    grads = torch.autograd.grad(run(leaves, x), [*leaves.values(), x])
    along = [*directions[0].values(), directions[1]]
    expected = sum((slope * direction).sum() for slope, direction in zip(grads, along, strict=True))
    assert expected != 0
    torch.testing.assert_close(jvp(run, (weights, image), directions)[1], expected)
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(weight, directions[0][name]) for name, weight in weights.items()}
        found = run(duals, forward_ad.make_dual(image, directions[1]))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)


def test_float32_networks_do_not_run_the_kernels_either():
    """The kernels of CPUs take only float32."""
    torch.manual_seed(0)
    model, image = VNet(base_channels=8, levels=2), torch.randn(1, 1, 4, 8, 4)
    for direction in (image, torch.ones_like(image)):
        found = jvp(lambda x: model(x).square().mean(), (image,), (direction,))[1]
        expected = (gradient(lambda x: model(x).square().mean(), image) * direction).sum()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        with forward_ad.dual_level():
            value = model(forward_ad.make_dual(image, direction)).square().mean()
            torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "batch"], ids=str)
@pytest.mark.parametrize("trained", [True, False])
def test_tangents_of_single_weights(norm, trained):
    """Of every one, whatever else has none; with the kernels of CPUs at hand."""
    torch.manual_seed(0)
    model, image = VNet(base_channels=8, levels=2, norm=norm).eval(), torch.randn(1, 1, 4, 8, 4)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def run(name, weight):
        return functional_call(model, {**weights, name: weight}, (image,)).square().mean()

    for name, weight in weights.items():
        expected = gradient(lambda weight, name=name: run(name, weight), weight).sum()
        with torch.set_grad_enabled(trained), forward_ad.dual_level():
            found = forward_ad.unpack_dual(run(name, forward_ad.make_dual(weight, torch.ones_like(weight)))).tangent
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_images_of_several_channels_one_by_one():
    model, images = VNet(in_channels=2, base_channels=8, levels=2), torch.randn(2, 1, 2, 8, 8, 8)
    weights = dict(model.named_parameters())

    def loss(weights, image):
        return functional_call(model, weights, (image,)).square().mean()

    torch.testing.assert_close(vmap(model)(images), torch.stack([model(image) for image in images]))
    found = vmap(grad(loss), (None, 0))(weights, images)
    for number, image in enumerate(images):
        expected = torch.autograd.grad(loss(weights, image), list(weights.values()))
        for name, gradient_of_one in zip(weights, expected, strict=True):
            torch.testing.assert_close(found[name][number], gradient_of_one, rtol=1e-3, atol=1e-5)


# batch norm would have other statistics for each, which it can't keep, as PyTorch's
@pytest.mark.parametrize("network", [None, "instance", "group"], indirect=True, ids=str)
def test_images_one_by_one(network):
    run, weights, images = network
    torch.testing.assert_close(
        vmap(run, (None, 0))(weights, images.unsqueeze(1)), torch.stack([run(weights, image[None]) for image in images])
    )


@pytest.mark.parametrize(
    "loss",
    [LOSSES["dice"], pytest.param(LOSSES["dice, focal"], marks=pytest.mark.exhaustive)],
    ids=["dice", "dice, focal"],
)
def test_compiled(loss, inputs):
    logits, direction, target = inputs
    expected = gradient(lambda x: loss(x, target), logits)
    slope = torch.compile(lambda x: jvp(lambda x: loss(x, target), (x,), (direction,))[1], backend="aot_eager")
    torch.testing.assert_close(slope(logits), (expected * direction).sum())
    torch.testing.assert_close(torch.compile(grad(loss), backend="aot_eager")(logits, target), expected)
