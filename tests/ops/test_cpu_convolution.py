"""The operators of the CPU's convolutions: against PyTorch's own, and what is kept between calls."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from vnet_fast import VNet
from vnet_fast.nn import convolution as nn_convolution
from vnet_fast.ops import cpu_convolution, cpu_convolution_choice, cpu_library
from vnet_fast.ops.add_prelu import add_prelu_definition

pytestmark = pytest.mark.skipif(cpu_library.library() is None, reason="the CPU's kernels are not compiled")
LAST = torch.channels_last_3d
OPERATORS = torch.ops.vnet_fast


@pytest.fixture(autouse=True)
def _by_rule(monkeypatch):
    """The kernels wherever they can run."""
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "winograd")


@pytest.fixture
def forms(monkeypatch):
    """What ran: the name of each form, with the pass."""
    ran = []
    original = cpu_convolution_choice.ruled

    def ruled(layer):
        ran.append((layer.which, original(layer)))
        return ran[-1][1]

    monkeypatch.setattr(cpu_convolution_choice, "ruled", ruled)
    return ran


def tensors(c=16, k=8, size=(6, 12, 20), dtype=torch.float32, volumes=1, taps=5):
    torch.manual_seed(0)
    x = torch.randn(volumes, c, *size).to(dtype).contiguous(memory_format=LAST)
    weight = (torch.randn(k, c, taps, taps, taps) * (2 / (taps**3 * c)) ** 0.5).contiguous(memory_format=LAST)
    return x, weight, torch.randn(k)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("form", ["onednn", "winograd-1", "winograd-2", "winograd-4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [3, 5])
def test_output_and_gradients_in_every_form(monkeypatch, form, taps, dtype):
    monkeypatch.setattr(cpu_convolution_choice, "ruled", lambda layer: form)
    x, weight, bias = tensors(dtype=dtype, taps=taps)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    exact_leaves = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y = cpu_convolution.convolve(*leaves)
    exact = F.conv3d(*exact_leaves, 1, taps // 2)
    grad = torch.randn_like(exact)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=LAST)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert error(y, exact) <= tolerance
    found, wanted = torch.autograd.grad(y, leaves, grad.to(dtype)), torch.autograd.grad(exact, exact_leaves, grad)
    for result, reference, leaf in zip(found, wanted, leaves, strict=True):
        assert result.dtype == leaf.dtype
        assert error(result, reference) <= tolerance


@pytest.mark.parametrize("form", ["onednn", "winograd-4"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("taps", [3, 5])
def test_prediction_is_the_convolution_with_its_activation(monkeypatch, form, taps, residual):
    monkeypatch.setattr(cpu_convolution_choice, "ruled", lambda layer: form)
    x, weight, bias = tensors(taps=taps)
    slope, added = torch.linspace(-0.5, 0.5, 8), torch.randn(1, 8, *x.shape[2:]) if residual else None
    exact = F.conv3d(x.double(), weight.double(), bias.double(), 1, taps // 2)
    assert error(cpu_convolution.predict(x, weight, bias), exact) <= 1e-4
    exact = add_prelu_definition(exact, slope.double(), None, None if added is None else added.double())
    assert error(cpu_convolution.predict(x, weight, bias, slope, added), exact) <= 1e-4


@pytest.mark.parametrize("form", ["onednn", "direct"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("taps", [3, 5])
def test_a_first_layer_in_both_forms(monkeypatch, form, taps, channels):
    monkeypatch.setattr(cpu_convolution_choice, "ruled", lambda layer: form)
    x, weight, bias = tensors(channels, taps=taps)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    exact_leaves = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y, exact = cpu_convolution.convolve(*leaves), F.conv3d(*exact_leaves, 1, taps // 2)
    assert error(y, exact) <= 1e-6
    found, wanted = torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(exact.sum(), exact_leaves)
    assert all(error(*pair) <= 1e-5 for pair in zip(found, wanted, strict=True))
    slope, residual = torch.linspace(-0.5, 0.5, 8), x[:, :1].detach()
    activated = add_prelu_definition(exact, slope.double(), None, residual.double())
    predicted = cpu_convolution.predict(x.detach(), weight.detach(), bias.detach(), slope, residual)
    assert error(predicted, activated) <= 1e-6


@pytest.mark.parametrize("taps", [pytest.param(3, marks=pytest.mark.exhaustive), 5])
def test_opcheck(taps):
    x, weight, bias = (tensor.requires_grad_() for tensor in tensors(8, 8, (4, 4, 5), taps=taps))
    opcheck(OPERATORS.cpu_convolution, (x, weight, bias))
    opcheck(OPERATORS.cpu_convolution, (x, weight, None))
    with torch.no_grad():
        opcheck(OPERATORS.cpu_convolution_predict, (x.detach(), weight.detach(), None, torch.ones(8), x.detach()))
        opcheck(OPERATORS.cpu_convolution_backward, (x.detach(), x.detach(), weight.detach(), True, False))


def test_a_second_derivative_is_an_error():
    x, weight, _ = (tensor.requires_grad_() for tensor in tensors(8, 8, (4, 4, 5)))
    (grad,) = torch.autograd.grad(cpu_convolution.convolve(x, weight, None).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cpu_convolution_backward"):
        grad.sum().backward()


def test_only_what_is_needed_is_computed(forms):
    x, weight, bias = tensors()
    cpu_convolution.convolve(x, weight.requires_grad_(), bias).sum().backward()
    assert [which for which, _ in forms] == ["forward", "grad_weight"]


def test_other_layouts_and_types_of_the_arguments_are_taken():
    x, weight, bias = tensors()
    expected = cpu_convolution.convolve(x, weight, bias)
    assert torch.equal(cpu_convolution.convolve(x.contiguous(), weight.contiguous(), bias.double()), expected)
    wide = torch.randn(1, 16, 6, 12, 40)
    strided = wide[..., ::2]
    assert torch.equal(
        cpu_convolution.convolve(strided, weight, bias), cpu_convolution.convolve(strided.clone(), weight, bias)
    )


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_network_is_the_same_and_its_layers_are_taken(monkeypatch, forms, kernel_size):
    torch.manual_seed(0)
    model, image = VNet(base_channels=8, kernel_size=kernel_size), torch.randn(1, 1, 32, 32, 32)
    probe = torch.randn(1, 2, 32, 32, 32)

    def run():
        model.zero_grad()
        logits = model(image)
        (logits * probe).sum().backward()
        with torch.no_grad():
            predicted = model(image)
        return logits.detach(), predicted, torch.cat([weight.grad.flatten() for weight in model.parameters()])

    found = run()
    # also those of 2x2x2 voxels; the image needs no gradient
    layers = sum(len(stage.layers) for stage in [*model.left, *model.right])
    passes = [which for which, _ in forms]
    assert [passes.count(which) for which in ("forward", "prediction", "grad_weight")] == [layers] * 3
    assert passes.count("grad_input") == layers - 1
    assert {"direct", "winograd-4"} <= {form for _, form in forms} <= {"direct", "winograd-1", "winograd-4"}
    forms.clear()
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    expected = run()
    assert not forms
    # a value near 0 may get the other sign, which changes its gradient by a step
    for result, reference, tolerance in zip(found, expected, (2e-5, 2e-5, 1e-2), strict=True):
        assert error(result, reference.double()) <= tolerance


def test_what_is_not_taken(monkeypatch):
    x, weight, _ = tensors()
    assert cpu_convolution.takes(x, weight)
    assert cpu_convolution.takes(x[..., :1, :1, :1], weight)
    assert not cpu_convolution.takes(x[..., :0], weight)
    assert not cpu_convolution.takes(x.to("meta"), weight.to("meta"))
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    assert not cpu_convolution.takes(x, weight)
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "winograd")
    monkeypatch.setattr(cpu_library, "library", lambda: None)
    assert not cpu_convolution.takes(x, weight)


def transforms(monkeypatch):
    """Counts the transforms of weights."""
    counted = []
    original = cpu_convolution.kernels.transform_weight
    monkeypatch.setattr(
        cpu_convolution.kernels, "transform_weight", lambda *given: counted.append(given[1]) or original(*given)
    )
    return counted


def test_a_transformed_weight_is_kept_until_the_weight_changes(monkeypatch):
    counted = transforms(monkeypatch)
    x, weight, _ = tensors()
    weight = torch.nn.Parameter(weight)
    with torch.no_grad():
        results = [cpu_convolution.predict(x, weight, None) for _ in range(3)]
        assert len(counted) == 1
        weight.mul_(2)
        doubled = cpu_convolution.predict(x, weight, None)
        assert len(counted) == 2
        weight.data = weight.data / 2
        again = cpu_convolution.predict(x, weight, None)
    assert len(counted) == 3
    assert all(torch.equal(result, results[0]) for result in (*results, doubled / 2, again))
    assert weight in cpu_convolution._kept
    # of another shape at the same address
    weight.data = weight.data[..., :3, :3, :3]
    with torch.no_grad():
        smaller = cpu_convolution.predict(x, weight, None)
    assert error(smaller, F.conv3d(x.double(), weight.detach().double(), None, 1, 1)) <= 1e-4
    # training uses the memory for something else
    cpu_convolution.convolve(x, weight, None).sum().backward()
    assert weight not in cpu_convolution._kept


def by_numpy(weight):
    weight.detach().numpy()[:] *= -1


def by_another_view(weight):
    weight.data.permute(0, 2, 3, 4, 1).view(-1)[5] += 1


def by_a_swap(weight):
    weight.data = weight.data.flip(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.data.mul_(0.99).add_(0.01),
        lambda weight: weight.data.neg_(),
        lambda weight: weight.data.clamp_(max=0.01),
        by_numpy,
        by_another_view,
        by_a_swap,
    ],
    ids=["average", "sign", "clamp", "numpy", "one value", "order"],
)
def test_changes_that_pytorch_does_not_count_are_seen(change):
    """Those of mean teachers, of other processes, of optimisers by `.data`."""
    x, weight, _ = tensors()
    weight = torch.nn.Parameter(weight)
    with torch.no_grad():
        before = cpu_convolution.predict(x, weight, None)
        change(weight)
        found = cpu_convolution.predict(x, weight, None)
    exact = F.conv3d(x.double(), weight.detach().double(), None, 1, 2)
    assert error(found, exact) <= 1e-4
    assert error(before, exact) > 2e-4


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_updates_of_fused_optimisers_are_seen(optimizer):
    """A prediction between a loss and its update is a metric, for example."""
    torch.manual_seed(0)
    model, image = VNet(base_channels=8, levels=2), torch.randn(1, 1, 16, 16, 16)
    optimizer = optimizer(model.parameters(), 0.01, fused=True)
    for _ in range(2):
        loss = model(image).square().mean()
        with torch.no_grad():
            model(image)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, exact = model(image), copy.deepcopy(model).double()(image.double())
    assert error(found, exact) <= 1e-4


def test_nothing_is_kept_of_a_network_that_is_gone():
    gc.collect()
    before, model = len(cpu_convolution._kept), VNet(base_channels=8)
    with torch.no_grad():
        model(torch.randn(1, 1, 32, 32, 32))
    assert len(cpu_convolution._kept) > before
    del model
    gc.collect()
    assert len(cpu_convolution._kept) == before


def test_copies_of_a_network_have_their_own(monkeypatch):
    model, image = VNet(base_channels=8), torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected, other = model(image), copy.deepcopy(model)
        for weight in other.parameters():
            weight.mul_(1.1)
        assert not torch.equal(other(image), expected)
        assert torch.equal(model(image), expected)


def test_in_inference_mode_weights_that_were_made_there_are_right():
    x, weight, _ = tensors()
    with torch.inference_mode():
        own = weight.clone()
        first = cpu_convolution.predict(x, own, None)
        own.mul_(2)
        assert torch.equal(cpu_convolution.predict(x, own, None), first * 2)


@pytest.mark.parametrize("passes", ["prediction", "training"])
@pytest.mark.parametrize("taps", [3, 5])
def test_a_single_large_value_is_left_to_onednn(monkeypatch, caplog, taps, passes):
    monkeypatch.setattr(cpu_convolution, "_has_said", False)
    x, weight, bias = tensors(size=(16, 24, 24), taps=taps)
    x[:, 3, 8, 12, 12] = 1e7
    run = cpu_convolution.predict if passes == "prediction" else cpu_convolution.convolve
    y = run(x, weight, bias)
    # where the value does not reach
    expected = F.conv3d(x, weight, bias, 1, taps // 2)
    assert torch.allclose(y[:, :, :5], expected[:, :, :5], rtol=1e-5, atol=1e-5)
    run(x, weight, bias)
    (message,) = caplog.messages
    assert "times as large as a volume's mean absolute value, so oneDNN runs instead" in message


@pytest.mark.parametrize("norm", [None, "instance", "batch"])
@pytest.mark.parametrize("is_training", [True, False])
def test_mixed_precision_keeps_half_precision_in_memory(norm, is_training, forms):
    torch.manual_seed(0)
    model, image = VNet(base_channels=8, norm=norm).train(is_training), torch.randn(1, 1, 32, 32, 32)
    with torch.set_grad_enabled(is_training), torch.autocast("cpu", torch.bfloat16):
        logits = model(image)
    assert logits.dtype == torch.bfloat16
    assert forms
    with torch.set_grad_enabled(is_training):
        expected = model(image)
    assert error(logits, expected.detach().double()) < 0.05


@pytest.mark.parametrize("transposed", [False, True])
def test_without_half_precision_in_onednn_a_convolution_is_computed_in_float32(monkeypatch, transposed):
    """PyTorch's own convolutions of bfloat16 take hundreds of times as long."""
    monkeypatch.setattr(nn_convolution, "cpu_has_convolutions", lambda dtype: dtype == torch.float32)
    seen = []
    name = "conv_transpose3d" if transposed else "conv3d"
    original = getattr(F, name)
    monkeypatch.setattr(nn_convolution.F, name, lambda x, *rest: seen.append(x.dtype) or original(x, *rest))
    layer = (torch.nn.ConvTranspose3d if transposed else torch.nn.Conv3d)(3, 4, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = nn_convolution.convolve(layer, torch.randn(1, 3, 4, 4, 4))
    assert seen == [torch.float32]
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_compiled_and_exported():
    """The compiler sees operators, and an exported program has PyTorch's convolutions."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(8, 8, 5, padding=2)
    x = torch.randn(1, 8, 5, 6, 7)
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = layer

        def forward(self, x):
            return nn_convolution.convolve(self.convolution, x)[0]

    compiled = torch.compile(Layer(), backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), Layer()(x))
    assert any("cpu_convolution" in name for name in seen)
    program = torch.export.export(Layer(), (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("aten.conv3d" in name for name in targets)
    assert not any("vnet_fast" in name for name in targets)


def test_a_vectorised_map_takes_pytorchs_convolution():
    layer = torch.nn.Conv3d(8, 8, 5, padding=2)
    x = torch.randn(2, 1, 8, 5, 6, 7)
    y = torch.vmap(lambda volume: nn_convolution.convolve(layer, volume)[0])(x)
    assert torch.allclose(y[:, 0], layer(x[:, 0]), atol=1e-5)
