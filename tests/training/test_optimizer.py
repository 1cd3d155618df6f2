import copy
import io
import itertools
import math
import types
import warnings

import pytest
import torch

from tests.ops.conftest import rounded_to_nearest  # noqa: F401 - a fixture
from vnet_fast import DiceLoss, VNet
from vnet_fast.ops import many_tensors as operator
from vnet_fast.ops.dispatch import load_kernels
from vnet_fast.training import kernel_optimizer as chooser
from vnet_fast.training import optimizer as module
from vnet_fast.training import step as step_module
from vnet_fast.training.kernel_optimizer import KernelOptimizer
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import WARM_UP, Step

SHAPE = (16, 16, 32)
BF16, FP16 = torch.bfloat16, torch.float16
GPU = torch.device("cuda")
# as momenta, `adamw` has an average of the weights too
NAMES = pytest.mark.parametrize("name", ["sgd", "adamw"])
RATES = {"sgd": 0.05, "nesterov": 0.05, "adamw": 0.005}


def test_biases_learn_twice_as_fast_with_sgd_and_do_not_decay():
    model = torch.nn.Conv3d(1, 1, 1)
    decaying, biases = make_optimizer(model, "sgd", 1e-4, 0.99, 5e-4).param_groups
    assert (decaying["weight_decay"], biases["weight_decay"]) == (5e-4, 0)
    assert (decaying["scale"], biases["scale"]) == (1, 2)
    assert (decaying["lr"], biases["lr"]) == (1e-4, 2e-4)
    assert decaying["momentum"] == 0.99
    assert [len(decaying["params"]), len(biases["params"])] == [1, 1]
    assert biases["params"][0] is model.bias
    assert not decaying["nesterov"]
    nesterov = make_optimizer(model, "nesterov", 1e-4, 0.99, 5e-4).param_groups
    assert all(group["nesterov"] for group in nesterov)
    assert [group["lr"] for group in nesterov] == [1e-4, 2e-4]


def test_adamw_does_not_warn_of_iterations_before_the_capture(monkeypatch):
    """PyTorch has a warning for optimisers that a graph can hold and that run without one; here that is meant."""
    stream = types.SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: GPU)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device=None: stream)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    model = torch.nn.Conv3d(1, 1, 1)
    optimizer = make_optimizer(model, "adamw", 1e-4, 0, 0)
    for group in optimizer.param_groups:
        # as on a GPU
        group |= {"capturable": True, "fused": True}
    model.weight.grad = torch.ones_like(model.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    optimizer._warned_capturable_if_run_uncaptured = False
    with pytest.warns(UserWarning, match="capturable=True"):
        optimizer.step()


# Weights in half precision


@pytest.fixture
def by_kernel(monkeypatch, rounded_to_nearest):  # noqa: F811
    """Keeps half-precision weights on a CPU, and updates them by the kernel, in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    # which take float32 weights
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    for where in (chooser, operator):
        monkeypatch.setattr(where, "kernels_for", lambda name, tensor: load_kernels(name))


@pytest.fixture
def by_definition(by_kernel, monkeypatch):
    """Keeps half-precision weights on a CPU, and updates them by the definition, to the last bit as autocast and
    PyTorch's optimisers do.
    """
    for name in ("sgd", "adamw"):
        monkeypatch.setattr(load_kernels(name), "supports", lambda *entry: False)


def step_of(autocast=BF16, name="sgd", topology="paper", tensor_rates=False, base_channels=2, device="cpu", norm=None):
    torch.manual_seed(0)
    model = VNet(base_channels=base_channels, topology=topology, norm=norm).to(device)
    ema = 0.9 if name == "adamw" else None
    step = Step(model, DiceLoss.paper(), make_optimizer(model, name, RATES[name], 0.9, 5e-4), autocast, ema=ema)
    if step.average:
        # as on a GPU
        step.average._on_device = torch.zeros((), device=device)
    for group in step.optimizer.param_groups:
        if tensor_rates:
            # as on a GPU
            group["lr"] = torch.tensor(float(group["lr"]))
    return step


def batch_of(seed, device="cpu"):
    image = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return image.to(device), (image > 0.5).to(torch.uint8).to(device)


def train(step, iterations=range(3)):
    return [step(*batch_of(iteration)).item() for iteration in iterations]


def numbers(step):
    """All that a checkpoint has of a step and its network."""
    kept = [value for state in step.optimizer.state.values() for value in state.values()]
    return [*step.model.state_dict().values(), *kept, *(step.average.values.values() if step.average else [])]


def without_half_weights(monkeypatch):
    monkeypatch.setattr(KernelOptimizer, "keep_half_weights", lambda self, model, dtype: None)


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def assert_rounded(step):
    """The half-precision weights are the rounded weights."""
    half = step.optimizer.half_weights
    for weight, rounded in half.copies.items():
        assert torch.equal(rounded, weight.to(half.dtype))
        assert rounded.stride() == weight.stride()


def test_weights_of_layers_with_hooks_are_trained(by_definition):
    """Of which each kind calls the module instead of the operation, and reads the copy all the same."""
    step = step_of()
    layers = [step.model.down[0], step.model.up[0], step.model.left[1].layers[0]]
    for layer in layers:
        layer.convolution.register_forward_hook(lambda *_: None)
    before = [layer.convolution.weight.detach().clone() for layer in layers]
    step.set_learning_rate(0.1)
    train(step)
    assert step.optimizer.half_weights is not None
    for layer, weight in zip(layers, before, strict=True):
        assert not torch.equal(layer.convolution.weight, weight)


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("sgd", "paper"),
        ("nesterov", "paper"),
        ("adamw", "paper"),
        pytest.param("sgd", "caffe", marks=pytest.mark.exhaustive),
        pytest.param("adamw", "caffe", marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_training_is_that_of_autocast_to_the_last_bit(by_definition, monkeypatch, name, topology):
    ours = step_of(name=name, topology=topology)
    losses = train(ours)
    assert len(ours.optimizer.half_weights.copies) == len(convolutions(ours.model))
    assert_rounded(ours)
    without_half_weights(monkeypatch)
    theirs = step_of(name=name, topology=topology)
    assert train(theirs) == losses
    assert theirs.optimizer.half_weights is None
    assert_same(numbers(ours), numbers(theirs))


def convolutions(model):
    kinds = torch.nn.Conv3d, torch.nn.ConvTranspose3d
    return [layer for layer in model.modules() if isinstance(layer, kinds)]


@NAMES
def test_training_by_the_kernel(by_kernel, monkeypatch, name):
    ours = step_of(name=name, tensor_rates=True, base_channels=1)
    before = [weight.detach().clone() for weight in ours.model.parameters()]
    losses = train(ours, range(2))
    assert_rounded(ours)
    without_half_weights(monkeypatch)
    theirs = step_of(name=name, base_channels=1)
    # the first loss is before any update
    assert losses[0] == train(theirs, range(1))[0]
    assert losses[1] == pytest.approx(train(theirs, range(1, 2))[0], rel=1e-4)
    for a, b, start in itertools.zip_longest(numbers(ours), numbers(theirs), before, fillvalue=torch.zeros(())):
        # a float32 sum that is rounded otherwise may round a weight otherwise, which later gradients show
        assert (a - b).norm() <= 1e-3 * (b - start).norm() + 1e-7


def test_the_network_has_them_within_a_step_only(by_definition):
    step = step_of()
    names = set(step.model.state_dict())
    seen = []
    layer = step.model.left[0].layers[0].convolution
    step.model.right[-1].register_forward_hook(lambda *_: seen.append(layer.compute_weight.dtype))
    train(step, range(1))
    assert seen == [BF16]
    assert not any(hasattr(layer, "compute_weight") for layer in step.model.modules())
    assert set(step.model.state_dict()) == names
    assert all(weight.dtype == torch.float32 for weight in copy.deepcopy(step.model).parameters())


def test_none_stay_where_a_step_fails(by_definition):
    step = step_of()
    step.model.right[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(step, range(1))
    assert not any(hasattr(layer, "compute_weight") for layer in step.model.modules())


def test_released_with_the_step(by_definition):
    step = step_of()
    train(step, range(1))
    kept = step.optimizer.half_weights
    step.release()
    assert step.optimizer.half_weights is None
    train(step, range(1, 2))
    assert step.optimizer.half_weights is not kept
    assert_rounded(step)


@NAMES
def test_resumed_training_goes_on_to_the_last_bit(by_definition, name):
    whole, first = step_of(name=name), step_of(name=name)
    train(whole, range(4))
    train(first, range(2))
    file = io.BytesIO()
    with first.averaged():
        torch.save({"model": first.model.state_dict(), **first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = step_of(name=name)
    # it has weights in half precision already, which are no longer right
    train(second, range(3))
    second.model.load_state_dict(state["model"])
    second.load_state_dict(state)
    train(second, range(2, 4))
    assert_same(numbers(whole), numbers(second))


@NAMES
def test_other_weights_are_rounded_before_the_next_step(by_definition, monkeypatch, name):
    ours, other = step_of(name=name), step_of(name=name)
    train(other)
    train(ours, range(1))
    ours.model.load_state_dict(other.model.state_dict())
    loss = train(ours, range(1, 2))
    without_half_weights(monkeypatch)
    theirs = step_of(name=name)
    train(theirs, range(1))
    theirs.model.load_state_dict(other.model.state_dict())
    assert train(theirs, range(1, 2)) == loss
    assert_same(numbers(ours), numbers(theirs))


PYTORCHS = {
    "sgd": (lambda groups: torch.optim.SGD(groups, momentum=0.9), {"momentum_buffer"}),
    "adamw": (torch.optim.AdamW, {"step", "exp_avg", "exp_avg_sq"}),
}


@NAMES
def test_the_state_is_that_of_pytorchs(by_definition, name):
    step, (make, names) = step_of(name=name), PYTORCHS[name]
    train(step, range(2))
    groups = [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in step.optimizer.param_groups]
    theirs = make(groups)
    # tensors of a state are shared
    theirs.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    assert step.optimizer.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()
    for state, expected in zip(step.optimizer.state.values(), theirs.state.values(), strict=True):
        assert state.keys() == expected.keys() == names
        assert all(torch.equal(state[key], expected[key]) and state[key].dtype == torch.float32 for key in names)
    # and back
    again, average = step_of(name=name), {"average": step.average.state_dict()} if step.average else {}
    again.load_state_dict({"optimizer": copy.deepcopy(theirs.state_dict()), "scaler": {}, **average})
    if step.average:
        for value, expected in zip(again.average.values.values(), step.average.values.values(), strict=True):
            value.copy_(expected)
    again.model.load_state_dict(step.model.state_dict())
    assert train(step, range(2, 4)) == train(again, range(2, 4))
    assert_same(numbers(step), numbers(again))


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({"autocast": None}, False),
        ({"wrapped": True}, False),
        ({"autocast": None, "name": "adamw"}, True),
        ({"wrapped": True, "name": "adamw"}, False),
    ],
    ids=["SGD in float32", "SGD, wrapped", "AdamW in float32", "AdamW, wrapped"],
)
def test_not_kept(by_definition, settings, runs):
    """Nor in a process among several, where DistributedDataParallel wraps the network. AdamW's kernel runs without."""
    wrapped = settings.get("wrapped", False)
    step = step_of(**{key: value for key, value in settings.items() if key != "wrapped"})
    if wrapped:
        step.model = torch.nn.Sequential(step.model)
    train(step, range(1))
    assert step.optimizer.half_weights is None
    assert step.optimizer.by_kernel == runs


@pytest.mark.parametrize("norm", [None, "batch"])
def test_adamw_without_half_precision_is_pytorchs_to_the_last_bit(by_definition, monkeypatch, norm):
    """With the average of weights, and of running statistics, which the kernel leaves to PyTorch."""
    ours = step_of(None, "adamw", norm=norm)
    losses = train(ours)
    assert ours.optimizer.by_kernel
    without_half_weights(monkeypatch)
    theirs = step_of(None, "adamw", norm=norm)
    assert train(theirs) == losses
    assert_same(numbers(ours), numbers(theirs))


@NAMES
def test_not_kept_where_kernels_do_not_run(name):
    step = step_of(name=name)
    train(step, range(1))
    assert step.optimizer.half_weights is None
    assert not step.optimizer.by_kernel


# float16's scaler


def scaled_step(init_scale, **settings):
    # small, because CPUs take long for float16
    step = step_of(FP16, base_channels=1, **settings)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
    return step


@NAMES
def test_scaled_gradients_in_float16(by_definition, monkeypatch, name):
    ours = scaled_step(256.0, name=name)
    losses = train(ours, range(2))
    assert_rounded(ours)
    assert ours.scaler.get_scale() == 512
    without_half_weights(monkeypatch)
    theirs = scaled_step(256.0, name=name)
    assert train(theirs, range(2)) == losses
    assert_same(numbers(ours), numbers(theirs))


@NAMES
@pytest.mark.parametrize("way", ["by_definition", pytest.param("by_kernel", marks=pytest.mark.exhaustive)])
def test_an_update_that_overflows_is_skipped(way, name, request):
    """Although only gradients in float16 overflow: those of weights, of which the scaler of PyTorch knows nothing."""
    request.getfixturevalue(way)
    step = scaled_step(1.0, name=name, tensor_rates=way == "by_kernel")
    train(step, range(1))
    before = [number.clone() for number in numbers(step)]
    averages = {key: value.clone() for key, value in step.average.values.items()} if step.average else {}
    half = list(step.optimizer.half_weights.copies.values())
    hook = half[3].register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    train(step, range(1, 2))
    # an average moves towards the weights as they are, as after any step
    for key, old in averages.items():
        weight, value = step.average.weights[key].detach(), step.average.values[key]
        torch.testing.assert_close(value, weight + step.average.number * (old - weight), rtol=1e-6, atol=1e-7)
        assert torch.equal(value, old) == torch.equal(old, weight)
    count = len(before) - len(averages)
    assert_same(numbers(step)[:count], before[:count])
    assert_rounded(step)
    assert step.scaler.get_scale() == 0.5
    assert not any(hasattr(step.optimizer.scaled, name) for name in ("grad_scale", "found_inf"))
    hook.remove()
    train(step, range(1, 2))
    assert not torch.equal(numbers(step)[0], before[0])


@NAMES
def test_a_capture_that_fails_leaves_no_scale(by_definition, monkeypatch, name):
    """The scaler sets them on what it steps, and deletes them only if that returns."""
    step = scaled_step(4.0, name=name)
    step.wants_graph = True
    failing = []

    def update(*_):
        if failing:
            raise RuntimeError("no capture")

    def fail(function):
        failing.append(True)
        try:
            return function()
        finally:
            failing.clear()

    monkeypatch.setattr(module, name, update)
    monkeypatch.setattr(step_module, "captured", fail)
    monkeypatch.setattr(step_module, "on_side_stream", lambda function: function())
    batch = batch_of(0)
    for _ in range(WARM_UP + 1):
        step(*batch)
    assert step.refusal == "no capture"
    assert not any(hasattr(step.optimizer.scaled, name) for name in ("grad_scale", "found_inf"))


# Captured: the copies belong to the graph


@NAMES
def test_a_graph_keeps_its_half_precision_weights(by_definition, monkeypatch, name):
    step = step_of(name=name)
    step.wants_graph = True
    graph = types.SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(step_module, "captured", lambda function: (graph, torch.zeros(())))
    monkeypatch.setattr(step_module, "on_side_stream", lambda function: function())
    batch = batch_of(0)
    for _ in range(WARM_UP + 1):
        step(*batch)
    kept = step.optimizer.half_weights
    assert step.captured
    # what a replay reads is right, wherever the weights come from
    step.model.load_state_dict(step_of(name=name).model.state_dict())
    monkeypatch.setattr(chooser, "kernels_for", lambda name, tensor: None)
    step(*batch)
    assert step.optimizer.half_weights is kept
    assert_rounded(step)
    step.load_state_dict(step.state_dict())
    assert step.optimizer.half_weights is None


@pytest.mark.gpu
@NAMES
@pytest.mark.parametrize("autocast", [BF16, FP16], ids=str)
def test_a_captured_step_is_an_eager_one_with_casts(autocast, monkeypatch, name):
    """Half-precision weights and the kernel, replayed, against autocast's casts and PyTorch's fused optimiser."""
    ours = step_of(autocast, name, base_channels=8, device=GPU)
    ours.wants_graph = True
    batches = [batch_of(seed, GPU) for seed in range(WARM_UP + 4)]
    losses = [ours(*batch).item() for batch in batches]
    assert ours.captured, ours.refusal
    assert_rounded(ours)
    without_half_weights(monkeypatch)
    theirs = step_of(autocast, name, base_channels=8, device=GPU)
    before = [number.clone() for number in compared(theirs)]
    assert losses == pytest.approx([theirs(*batch).item() for batch in batches], rel=1e-2)
    for a, b, start in zip(compared(ours), compared(theirs), before, strict=True):
        assert (a - b).norm() <= 0.1 * (b - start).norm() + 1e-6
    if name == "adamw":
        steps = [{state["step"].item() for state in step.optimizer.state.values()} for step in (ours, theirs)]
        assert steps[0] == steps[1] == {len(batches) - skipped(theirs)}


def compared(step):
    """Weights and momenta of SGD, and of AdamW all weights together, and their averages: where a gradient is nearly
    zero, an update has the sign of its rounding.
    """
    if step.average is None:
        return numbers(step)
    weights = step.average.weights.values(), step.average.values.values()
    return [torch.cat([weight.detach().flatten() for weight in some]) for some in weights]


def skipped(step):
    """How many updates float16's scaler has skipped, each of which has halved its scale."""
    return round(math.log2(2.0**16 / step.scaler.get_scale())) if step.scaler.is_enabled() else 0


def one_step(step):
    image = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    return step(image, (image > 0.5).to(torch.uint8))


@NAMES
def test_a_frozen_weight_stays_also_when_it_is_frozen_between_two_steps(by_definition, name):
    step = step_of(name=name, tensor_rates=True)
    frozen, later = (layer.convolution.weight for layer in list(step.model.left[1].layers)[:2])
    frozen.requires_grad_(False)
    before = frozen.clone(), later.clone()
    one_step(step)
    assert torch.equal(frozen, before[0])
    assert not torch.equal(later, before[1])
    assert step.optimizer.half_weights is not None
    later.requires_grad_(False)
    before = later.clone()
    one_step(step)
    assert torch.equal(later, before)


@NAMES
def test_hooks_of_weights_are_called(by_definition, name):
    step, seen = step_of(name=name, tensor_rates=True), []
    weight = step.model.left[1].layers[0].convolution.weight
    weight.register_hook(lambda grad: seen.append(grad.dtype))
    one_step(step)
    assert seen == [torch.float32]
    assert weight.grad is not None


@NAMES
def test_a_parametrised_convolution_is_trained(by_definition, name):
    step = step_of(name=name, tensor_rates=True)
    layer = step.model.left[1].layers[0]
    torch.nn.utils.parametrizations.weight_norm(layer.convolution)
    step.optimizer = make_optimizer(step.model, name, 0.05, 0.9, 5e-4)
    for group in step.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    before = layer.convolution.weight.clone()
    one_step(step)
    assert step.optimizer.half_weights is not None
    assert not torch.equal(layer.convolution.weight, before)


@NAMES
def test_a_copy_of_the_optimiser_works(by_definition, name):
    step = step_of(name=name, tensor_rates=True)
    one_step(step)
    for other in (copy.deepcopy(step.optimizer), pickled(step.optimizer)):
        assert other.half_weights is None
        other.zero_grad()
        other.step()


def pickled(optimizer):
    memory = io.BytesIO()
    torch.save(optimizer, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)
