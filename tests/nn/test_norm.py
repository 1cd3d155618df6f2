"""Networks with normalisation, and with fewer levels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from vnet_fast import VNet
from vnet_fast.nn.folding import folded
from vnet_fast.nn.norm import KINDS, Norm
from vnet_fast.nn.topology import TOPOLOGIES
from vnet_fast.ops.training_pass import training_pass


def network(norm, topology="paper", **arguments):
    """A network whose every weight makes a difference."""
    torch.manual_seed(0)
    model = VNet(**{"base_channels": 2, "topology": topology, "norm": norm, "levels": 3, **arguments})
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.rand_like(weight) + 0.2 if name.endswith("weight") else torch.randn_like(weight))
    return model


def pytorchs(layer, x, residual):
    """A layer by PyTorch's own modules."""
    norm, x = layer.norm, layer.convolution(x)
    if norm.kind == "batch":
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, 0.1, 1e-5)
    else:
        x = F.group_norm(x, norm.sets.groups, norm.weight, norm.bias, 1e-5)
    return layer.activation(x if residual is None else x + residual)


def plain_forward(model, x):
    """The network written out with PyTorch's own modules, in its order."""

    def stage(module, x, residual):
        *first, last = module.layers
        for layer in first:
            x = pytorchs(layer, x, None)
        return pytorchs(last, x, residual)

    skips, residual = [], torch.cat([x] * model.base_channels, 1)
    for index, module in enumerate(model.left):
        x = stage(module, x, residual)
        if index < len(model.down):
            skips.append(x)
            x = residual = pytorchs(model.down[index], x, None)
    for up, module in zip(model.up, model.right, strict=True):
        x = torch.cat([pytorchs(up, x, None), skips.pop()], 1)
        x = stage(module, x, x)
    if model.wide_head is not None:
        x = pytorchs(model.wide_head, x, None)
    return model.head(x)


@pytest.mark.parametrize(
    ("norm", "topology"),
    [
        ("instance", "paper"),
        ("batch", "caffe"),
        ("group", "paper"),
        pytest.param("instance", "caffe", marks=pytest.mark.exhaustive),
        pytest.param("batch", "paper", marks=pytest.mark.exhaustive),
    ],
)
def test_forward_gradients_and_running_means_are_pytorchs(norm, topology):
    model = network(norm, topology).double()
    plain, x = copy.deepcopy(model), torch.randn(2, 1, 8, 16, 8, dtype=torch.float64)
    for _ in range(2):
        outputs = model(x), plain_forward(plain, x)
        torch.testing.assert_close(*outputs)
        x = x + 1
    grads = [
        torch.autograd.grad(output.square().sum(), list(of.parameters()))
        for output, of in zip(outputs, (model, plain), strict=True)
    ]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    model.eval(), plain.eval()
    torch.testing.assert_close(model(x), plain_forward(plain, x))


@pytest.mark.parametrize("passes", [1, 2])
def test_running_means_move_at_the_end_of_a_training_pass(passes):
    """Those of a network that is used several times in a pass move as often."""
    outside, inside = network("batch"), network("batch")
    images = torch.randn(passes, 2, 1, 8, 8, 8)
    for x in images:
        outside(x)
    first = [buffer.clone() for buffer in inside.buffers()]
    with training_pass():
        for x in images:
            loss = inside(x).sum()
        moved = [not torch.equal(*pair) for pair in zip(inside.buffers(), first, strict=True)]
        assert all(moved) if passes == 2 else not any(moved)
        loss.backward()
    for ours, theirs in zip(inside.buffers(), outside.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", [None, "instance", "batch"])
def test_a_checkpointed_network_has_the_same_gradients(norm):
    """Checkpointing computes saved tensors again, and lets each be looked at once."""
    model, x = network(norm), torch.randn(2, 1, 8, 8, 8)
    grads = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        forward(x).square().sum().backward()
        grads.append([weight.grad for weight in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


def test_a_traced_pass_moves_running_means_within_it():
    model, x = network("batch"), torch.randn(2, 1, 8, 8, 8)
    with training_pass():
        graph = make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    names = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert any("lerp" in str(name) for name in names)


def test_running_means_stay_if_a_training_pass_fails():
    model = network("batch")
    before = [buffer.clone() for buffer in model.buffers()]

    def fail(_):
        raise RuntimeError("the loss fails")

    with pytest.raises(RuntimeError, match="the loss fails"), training_pass():
        fail(model(torch.randn(2, 1, 8, 8, 8)))
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), before, strict=True))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_folded_network_has_equal_logits(topology):
    model = network("batch", topology)
    for _ in range(3):
        model(torch.randn(2, 1, 16, 16, 8) * 2 + 1)
    model.eval()
    plain = folded(model)
    assert plain.norm is None
    assert not any("norm" in name for name in plain.state_dict())
    x = torch.randn(2, 1, 16, 16, 8)
    exact = plain_forward(copy.deepcopy(model).double(), x.double())
    for logits in (plain(x), model(x)):
        assert (logits - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_folding_in_evaluation_has_gradients_of_every_weight():
    model = network("batch").eval().double()
    x = torch.randn(1, 1, 8, 8, 8, dtype=torch.float64)
    weights = list(model.parameters())
    grads = [torch.autograd.grad(forward(x).sum(), weights) for forward in (model, lambda x: plain_forward(model, x))]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_other_networks_are_not_folded():
    for norm in (None, "instance", "group"):
        model = VNet(base_channels=1, norm=norm, levels=2)
        assert folded(model) is model


@pytest.mark.parametrize("norm", KINDS)
def test_a_norm_takes_the_place_of_the_bias(norm):
    model = VNet(base_channels=2, norm=norm, topology="caffe")
    layers = [module for module in model.modules() if hasattr(module, "activation")]
    assert all(layer.convolution.bias is None and isinstance(layer.norm, Norm) for layer in layers)
    assert model.head.bias is not None
    assert len([name for name, _ in model.named_buffers()]) == (2 * len(layers) if norm == "batch" else 0)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())


@pytest.mark.parametrize(("channels", "groups"), [(2, 2), (8, 8), (16, 8), (20, 4), (256, 8)])
def test_groups(channels, groups):
    assert Norm("group", channels).sets.groups == groups


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("levels", [2, 4])
def test_fewer_levels_leave_out_the_coarsest(topology, levels):
    model = VNet(base_channels=2, topology=topology, levels=levels)
    plan = TOPOLOGIES[topology]
    assert [len(stage.layers) for stage in model.left] == list(plan.left[:levels])
    assert [len(stage.layers) for stage in model.right] == list(plan.right[-levels + 1 :])
    assert (len(model.down), len(model.up)) == (levels - 1, levels - 1)
    fields = model.receptive_fields()
    assert f"left {levels + 1}" not in fields
    assert fields[f"left {levels}"] == VNet(base_channels=2, topology=topology).receptive_fields()[f"left {levels}"]
    # what is no multiple of 2^(levels - 1) is padded, and nothing else
    shapes = []
    model.left[0].register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
    multiple = 2 ** (levels - 1)
    for shape in ((multiple, 3 * multiple, multiple), (multiple + 1, 5, 2 * multiple - 1)):
        assert model(torch.randn(1, 1, *shape)).shape == (1, 2, *shape)
        assert shapes.pop() == tuple(-(-length // multiple) * multiple for length in shape)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_small_kernels(topology):
    model, usual = (network("batch", topology, kernel_size=size) for size in (3, 5))
    assert model.kernel_size == 3
    full = [module for module in model.modules() if isinstance(module, torch.nn.Conv3d) and module.padding[0]]
    assert {module.kernel_size for module in full} == {(3, 3, 3)}
    assert {module.padding for module in full} == {(1, 1, 1)}
    assert len(full) == sum(
        isinstance(module, torch.nn.Conv3d) and module.padding[0] == 2 for module in usual.modules()
    )
    assert model.receptive_fields()["left 1"] == 3
    x = torch.randn(1, 1, 9, 8, 7)
    assert model(x).shape == (1, 2, 9, 8, 7)
    model.eval()
    torch.testing.assert_close(folded(model)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_mixed_precision(norm):
    model = network(norm, base_channels=8)
    x = torch.randn(2, 1, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    exact = model(x)
    assert (logits - exact).norm() <= 0.05 * exact.norm()
    logits.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "norm must be None or one of instance, batch, group; got 'layer'"),
        ({"levels": 1}, "levels must be a whole number from 2 to 5; got 1"),
        ({"levels": 6}, "levels must be a whole number from 2 to 5; got 6"),
        ({"kernel_size": 4}, "kernel_size must be one of 3, 5; got 4"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VNet(**arguments)
