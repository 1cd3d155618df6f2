import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vnet_fast import VNet
from vnet_fast.nn.topology import TOPOLOGIES

FULL = (64, 128, 128)
TABLE_1 = {
    "left 1": 5,
    "left 2": 22,
    "left 3": 72,
    "left 4": 172,
    "left 5": 372,
    "right 4": 476,
    "right 3": 528,
    "right 2": 546,
    "right 1": 551,
    "output": 551,
}


def small(topology="paper", **arguments):
    torch.manual_seed(0)
    return VNet(**{"base_channels": 2, "topology": topology, **arguments})


@pytest.mark.parametrize(("topology", "count"), [("paper", 65_175_314), ("caffe", 61_982_682)])
def test_parameter_count(topology, count):
    with torch.device("meta"):
        model = VNet(topology=topology)
    assert sum(weight.numel() for weight in model.parameters()) == count


@pytest.mark.parametrize(
    ("topology", "left", "right"), [("paper", [1, 2, 3, 3, 3], [3, 3, 2, 1]), ("caffe", [1, 1, 2, 3, 3], [3, 2, 1, 1])]
)
def test_convolutions_of_each_stage(topology, left, right):
    model = small(topology)
    assert [len(stage.layers) for stage in model.left] == left
    assert [len(stage.layers) for stage in model.right] == right
    assert (model.wide_head is not None) == (topology == "caffe")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_shape_of_every_stage(topology):
    with torch.device("meta"):
        model = VNet(topology=topology)
        shapes = {}
        for name in ("left", "down", "up", "right"):
            for index, module in enumerate(getattr(model, name)):
                module.register_forward_hook(
                    lambda module, inputs, output, key=(name, index): shapes.__setitem__(key, tuple(output.shape[1:]))
                )
        output = model(torch.empty(1, 1, *FULL))
    d, h, w = FULL
    for level, channels in enumerate((16, 32, 64, 128, 256)):
        assert shapes["left", level] == (channels, d >> level, h >> level, w >> level)
        if level:
            assert shapes["down", level - 1] == shapes["left", level]
    for index, (level, channels) in enumerate(((3, 256), (2, 128), (1, 64), (0, 32))):
        assert shapes["right", index] == (channels, d >> level, h >> level, w >> level)
        # the up-convolution's channels and, behind them, the skip's
        assert shapes["up", index] == shapes["right", index]
    assert output.shape == (1, 2, *FULL)


def test_receptive_fields_are_the_papers():
    assert small().receptive_fields() == TABLE_1


def test_receptive_fields_follow_the_network():
    assert small("caffe").receptive_fields()["output"] == 507
    model = small()
    model.left[0].layers.append(model.left[0].layers[0])
    assert model.receptive_fields()["left 1"] == 9


@pytest.mark.parametrize("level", [0, 1])
def test_receptive_field_is_what_a_gradient_reaches(level):
    model = small().double()
    features = []
    model.left[level].register_forward_hook(lambda module, inputs, output: features.append(output))
    x = torch.rand(1, 1, 48, 48, 48, dtype=torch.float64, requires_grad=True)
    model(x)
    middle = features[0].shape[2] // 2
    features[0][0, :, middle, middle, middle].sum().backward()
    reached = x.grad[0, 0].abs().sum((0, 1)).nonzero()
    assert reached.max() - reached.min() + 1 == TABLE_1[f"left {level + 1}"]


def plain_forward(model, x):
    """The network written out, by the paper's figure 2, with PyTorch's own modules."""

    def activate(layer, x):
        return layer.activation(x)

    def stage(module, x, residual):
        for layer in module.layers[:-1]:
            x = activate(layer, layer.convolution(x))
        last = module.layers[-1]
        return activate(last, last.convolution(x) + residual)

    skips = []
    residual = torch.cat([x] * model.base_channels, 1)
    for index, module in enumerate(model.left):
        x = stage(module, x, residual)
        if index < 4:
            skips.append(x)
            x = residual = activate(model.down[index], model.down[index].convolution(x))
    for up, module in zip(model.up, model.right, strict=True):
        x = torch.cat([activate(up, up.convolution(x)), skips.pop()], 1)
        x = stage(module, x, x)
    if model.wide_head is not None:
        x = activate(model.wide_head, model.wide_head.convolution(x))
    return model.head(x)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_forward_and_gradients_are_the_papers(topology):
    model = small(topology).double()
    x = torch.randn(2, 1, 16, 32, 16, dtype=torch.float64)
    weights = list(model.parameters())
    outputs = model(x), plain_forward(model, x)
    torch.testing.assert_close(*outputs)
    grads = [torch.autograd.grad(output.square().sum(), weights) for output in outputs]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_initialisation():
    model = VNet(base_channels=8)
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            assert (module.weight == 0.25).all()
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            assert (module.bias == 0).all()
            fan = (module.in_channels + module.out_channels) / 2 * module.kernel_size[0] ** 3
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("in_channels", "num_classes", "base_channels"), [(1, 1, 2), (3, 4, 2), (2, 2, 4), (5, 3, 2)])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_any_channels_and_classes(in_channels, num_classes, base_channels, topology):
    model = small(topology, in_channels=in_channels, num_classes=num_classes, base_channels=base_channels)
    logits = model(torch.randn(2, in_channels, 16, 16, 16))
    assert logits.shape == (2, num_classes, 16, 16, 16)
    logits.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_input_channels_repeat_over_the_first_stage():
    model = small(in_channels=2, base_channels=5)
    first = model.left[0]
    nn.init.zeros_(first.layers[0].convolution.weight)
    x = torch.rand(1, 2, 16, 16, 16)
    features = []
    first.register_forward_hook(lambda module, inputs, output: features.append(output))
    model(x)
    torch.testing.assert_close(features[0], x[:, [0, 1, 0, 1, 0]])


@pytest.mark.parametrize("size", [(17, 16, 16), (5, 30, 33), (1, 1, 1), (31, 47, 15)], ids=str)
def test_other_sizes_are_padded_and_cropped(size):
    model = small().double()
    x = torch.randn(1, 1, *size, dtype=torch.float64)
    logits = model(x)
    assert logits.shape == (1, 2, *size)
    missing = [-length % 16 for length in size]
    pads = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
    whole = model(F.pad(x, pads))
    inside = tuple(slice(m // 2, m // 2 + length) for m, length in zip(missing, size, strict=True))
    torch.testing.assert_close(logits, whole[(..., *inside)], rtol=0, atol=0)


def test_runs_in_channels_last_whatever_the_inputs_layout():
    model = small()
    strides = []
    for stage in (*model.left, *model.right):
        stage.register_forward_hook(
            lambda module, inputs, output: strides.append(output.is_contiguous(memory_format=torch.channels_last_3d))
        )
    x = torch.randn(2, 1, 32, 32, 32)
    first = model(x)
    assert len(strides) == 9
    assert all(strides)
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in model.parameters() if weight.ndim == 5
    )
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last_3d)), first)


def test_state_dict_keeps_the_layout():
    source, target = small(), small()
    target.load_state_dict(source.state_dict())
    weight = target.left[1].layers[0].convolution.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "size", [(16, 16, 16), (32, 16, 16), pytest.param((32, 48, 32), marks=pytest.mark.exhaustive)], ids=str
)
def test_bfloat16_gradients_on_the_cpu(size):
    """Coarse stages are smaller than the kernel: there oneDNN's bfloat16 weight gradient is wrong."""
    model = small(base_channels=8)
    x = torch.randn(2, 1, *size)
    weights = list(model.parameters())

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(x)
        return torch.autograd.grad(logits.float().square().mean(), weights)

    expected = gradients(False)
    for _ in range(2):
        for exact, rounded in zip(expected, gradients(True), strict=True):
            # rounding alone reaches a fifth where gradients of many voxels cancel; the fault, 70 %
            assert (rounded - exact).norm() <= 0.3 * exact.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topology": "unet"}, "topology must be one of paper, caffe; got 'unet'"),
        ({"in_channels": 0}, "in_channels must be a positive integer; got 0"),
        ({"num_classes": 1.5}, "num_classes must be a positive integer; got 1.5"),
        ({"base_channels": -1}, "base_channels must be a positive integer; got -1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VNet(**arguments)


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 2, 16, 16, 16), (1, 1, 16, 0, 16)], ids=str)
def test_wrong_input(shape):
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, D, H, W\); got"):
        small()(torch.zeros(shape))


def test_an_axis_may_be_halved_less_often():
    model = small(levels=4, halvings=(1, 3, 3))
    assert model.strides == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert model.size_multiples == (2, 8, 8)
    shapes = []
    for stage in model.left:
        stage.register_forward_hook(lambda module, given, y: shapes.append(tuple(y.shape[2:])))
    image = torch.randn(1, 1, 6, 24, 16)
    assert model(image).shape[2:] == image.shape[2:]
    assert shapes == [(6, 24, 16), (6, 12, 8), (6, 6, 4), (3, 3, 2)]
    # padded along the axes that are not multiples
    assert model(torch.randn(1, 1, 5, 17, 16)).shape[2:] == (5, 17, 16)


def test_without_depth_it_is_a_network_of_slices():
    """Where no step halves z and each slice has its own zeros above and below, slices do not see each other."""
    model = small(levels=3, halvings=(0, 2, 2), kernel_size=3).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("convolution.weight") and weight.shape[2:] == (3, 3, 3):
                weight[:, :, [0, 2]] = 0
        image = torch.randn(1, 1, 4, 16, 16)
        whole = model(image)
        alone = torch.cat([model(image[:, :, z : z + 1]) for z in range(4)], dim=2)
    torch.testing.assert_close(whole, alone)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_where_steps_differ_logits_and_gradients_are_those_of_float64(kernel_size, monkeypatch):
    model = small(base_channels=8, levels=3, halvings=(1, 2, 2), kernel_size=kernel_size)
    exact = copy.deepcopy(model).double()
    image = torch.randn(2, 1, 6, 32, 32)
    wanted = exact(image.double())
    # with the kernels for CPUs
    torch.testing.assert_close(model(image), wanted.float(), atol=1e-4, rtol=1e-4)
    # without, because an activation that rounding moves across zero has another gradient
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    model(image).square().mean().backward()
    wanted.square().mean().backward()
    for (name, weight), other in zip(model.named_parameters(), exact.parameters(), strict=True):
        error = (weight.grad - other.grad).norm() / other.grad.norm()
        assert error < 1e-5, name


def test_halvings_of_every_step_are_the_usual_network():
    assert small(levels=3, halvings=(2, 2, 2)).halvings is None


@pytest.mark.parametrize("halvings", [(1, 1, 1), (3, 2, 2), (2, 2), (-1, 2, 2), (1.0, 2, 2), (True, 2, 2)])
def test_halvings_that_there_are_not(halvings):
    with pytest.raises(ValueError, match="halvings must be None or three whole numbers from 0 to 2, one of them 2"):
        small(levels=3, halvings=halvings)


@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize("size", [(32, 32, 1), (1, 32, 32), (32, 1, 1)], ids=str)
def test_images_of_two_axes_in_any_place(size, norm):
    torch.manual_seed(0)
    halvings = tuple(4 if length > 1 else 0 for length in size)
    model, x = VNet(base_channels=8, norm=norm, halvings=halvings), torch.randn(2, 1, *size)
    reference = copy.deepcopy(model).double()
    logits, exact = model(x), reference(x.double())
    torch.testing.assert_close(logits.double(), exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())
    logits.square().mean().backward()
    exact.square().mean().backward()
    for layer in ("left.0.layers.0.convolution.weight", "head.weight"):
        found, expected = (network.get_parameter(layer).grad.double() for network in (model, reference))
        assert (found - expected).norm() <= 1e-3 * expected.norm()
