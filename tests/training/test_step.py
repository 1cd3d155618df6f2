import pytest
import torch

from vnet_fast import DiceLoss, VNet
from vnet_fast.data.phantom import phantoms
from vnet_fast.training import step
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.sources import Resident
from vnet_fast.training.step import WARM_UP, Step
from vnet_fast.training.volumes import Volumes

SHAPE = (16, 32, 32)
CPU = torch.device("cpu")
GPU = torch.device("cuda")
PRECISIONS = [None, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def prepared():
    return phantoms(0, 4, SHAPE[::-1], (4, 4, 6))


def source_of(prepared, device=CPU, dtype=torch.float32, augmented=True, batch_size=2):
    return Resident(Volumes(prepared, 2), BatchSampler(0, batch_size, 4, SHAPE, augmented), device, dtype)


def trainer(device=CPU, autocast=None, source=None, graph=False, name="sgd", rate=0.01, base_channels=2):
    torch.manual_seed(0)
    model = VNet(base_channels=base_channels).to(device)
    optimizer = make_optimizer(model, name, rate, 0.9, 5e-4)
    prepare = source.prepare if source is not None else None
    return Step(model, DiceLoss.paper(), optimizer, autocast, prepare, graph)


def weights(trained):
    return [weight.detach().clone() for weight in trained.model.parameters()]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


# Eager


def test_a_step_is_forward_loss_backward_update(prepared):
    """Against PyTorch's own optimiser, without groups that are fused or start with zeros."""
    source = source_of(prepared)
    ours, plain = trainer(source=source), trainer()
    plain.optimizer = torch.optim.SGD(
        [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in plain.optimizer.param_groups],
        momentum=0.9,
    )
    for iteration in range(3):
        loss = ours(*source.inputs(iteration))
        image, mask = source.prepare(*source.inputs(iteration))
        plain.optimizer.zero_grad()
        expected = plain.loss(plain.model(image), mask)
        expected.backward()
        plain.optimizer.step()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-7)
    for a, b in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "autocast"),
    [
        ("adamw", None),
        pytest.param("sgd", torch.bfloat16, marks=pytest.mark.exhaustive),
        pytest.param("sgd", None, marks=pytest.mark.exhaustive),
        pytest.param("adamw", torch.bfloat16, marks=pytest.mark.exhaustive),
    ],
)
def test_steps_learn_one_batch(prepared, autocast, name):
    source = source_of(prepared, augmented=False, batch_size=1)
    rate = {"sgd": 0.05, "adamw": 3e-4}[name]
    learn = trainer(autocast=autocast, source=source, name=name, rate=rate, base_channels=4)
    batch = source.inputs(0)
    losses = [learn(*batch).item() for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]


def test_mixed_precision_runs_in_it(prepared):
    seen = []
    source = source_of(prepared)
    mixed = trainer(autocast=torch.bfloat16, source=source)
    mixed.model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    mixed(*source.inputs(0))
    assert seen == [torch.bfloat16]
    assert all(weight.dtype == torch.float32 for weight in mixed.model.parameters())


@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=pytest.mark.gpu)], ids=str)
def test_the_rate_is_that_set_for_each_group(device):
    for name, scale in (("sgd", 2), ("adamw", 1)):
        learn = trainer(device, name=name)
        before = [group["lr"] for group in learn.optimizer.param_groups]
        learn.set_learning_rate(0.125)
        after = [group["lr"] for group in learn.optimizer.param_groups]
        assert [float(rate) for rate in after] == [0.125, 0.125 * scale]
        # on a GPU the same tensors: a graph reads them where they lie
        assert device == CPU or [a is b for a, b in zip(after, before, strict=True)] == [True, True]


def test_a_skipped_first_update_changes_nothing(prepared, monkeypatch):
    """Neither weights nor momentum, which PyTorch's fused SGD would leave unwritten."""
    source = source_of(prepared)
    learn = trainer(source=source)
    # as on a GPU
    learn.optimizer._step_supports_amp_scaling = True
    for group in learn.optimizer.param_groups:
        group["fused"] = True
    learn.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before, plain_loss = weights(learn), learn.loss
    learn.loss = lambda logits, target: 1e20 * plain_loss(logits, target)
    original = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: original(*args, **kwargs).fill_(torch.nan))
    learn(*source.inputs(0))
    monkeypatch.undo()
    assert_same(weights(learn), before)
    assert not any(state["momentum_buffer"].any() for state in learn.optimizer.state.values())
    assert learn.scaler.get_scale() == 2.0**126
    learn.scaler, learn.loss = torch.amp.GradScaler("cpu", init_scale=2.0), plain_loss
    learn(*source.inputs(1))
    unscaled = trainer(source=source)
    unscaled(*source.inputs(1))
    for a, b in zip(weights(learn), weights(unscaled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_goes_on_where_it_was(prepared, name):
    source = source_of(prepared)
    whole, first = (trainer(source=source, name=name) for _ in range(2))
    for iteration in range(2):
        whole(*source.inputs(iteration))
        first(*source.inputs(iteration))
    second = trainer(source=source, name=name)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    for iteration in range(2, 4):
        assert torch.equal(whole(*source.inputs(iteration)), second(*source.inputs(iteration)))
    assert_same(weights(whole), weights(second))


def test_another_networks_state_is_refused():
    model = VNet(base_channels=2, topology="caffe")
    other = Step(model, DiceLoss.paper(), make_optimizer(model, "sgd", 0.1, 0.9, 0))
    with pytest.raises(ValueError, match="belongs to other parameters"):
        trainer().load_state_dict(other.state_dict())


# Captured: the logic around a graph, with one that runs its function at every replay


class Graph:
    """Like a CUDA graph: capturing runs nothing, a replay runs all and writes the same loss."""

    def __init__(self, function):
        self.function, self.loss, self.replays = function, torch.zeros(()), 0

    def replay(self):
        self.replays += 1
        self.loss.copy_(self.function())


@pytest.fixture
def graphs(monkeypatch):
    made = []

    def captured(function):
        made.append(Graph(function))
        return made[-1], made[-1].loss

    monkeypatch.setattr(step, "captured", captured)
    monkeypatch.setattr(step, "on_side_stream", lambda function: function())
    return made


def graphed(source, **settings):
    learn = trainer(source=source, **settings)
    learn.wants_graph = True
    return learn


def test_replays_are_the_eager_iterations(prepared, graphs):
    source = source_of(prepared)
    eager, ours = trainer(source=source), graphed(source)
    losses = []
    for iteration in range(WARM_UP + 4):
        for learn in (eager, ours):
            learn.set_learning_rate(0.01 / (1 + iteration))
        losses.append((eager(*source.inputs(iteration)), ours(*source.inputs(iteration))))
        assert ours.captured == (iteration >= WARM_UP)
    # read back late, as training does
    assert all(torch.equal(a, b) for a, b in losses)
    assert_same(weights(eager), weights(ours))
    assert [graph.replays for graph in graphs] == [4]


def test_a_batch_of_another_size_runs_between_replays(prepared, graphs):
    source, odd = source_of(prepared), source_of(prepared, batch_size=1)
    eager, ours = trainer(source=source), graphed(source)
    for iteration in range(WARM_UP + 4):
        batch = (odd if iteration in (1, WARM_UP + 2) else source).inputs(iteration)
        assert torch.equal(eager(*batch), ours(*batch))
    assert_same(weights(eager), weights(ours))
    # one of the odd batches was in the warm-up, which waits for another of its size
    assert [graph.replays for graph in graphs] == [2]


# of float16, which a CPU computes slowly
@pytest.mark.exhaustive
def test_no_capture_is_said_and_training_goes_on(prepared, graphs, monkeypatch):
    def fail(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nmore message")

    source = source_of(prepared)
    eager, ours = trainer(source=source, autocast=torch.float16), graphed(source, autocast=torch.float16)
    for learn in (eager, ours):
        learn.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    # a capture runs nothing: what its function does to weights and state is undone here
    monkeypatch.setattr(step, "captured", fail)
    for iteration in range(WARM_UP + 3):
        expected = eager(*source.inputs(iteration))
        if iteration == WARM_UP:
            kept = weights(ours), {key: dict(value) for key, value in ours.optimizer.state.items()}
            kept = kept[0], {key: {k: v.clone() for k, v in value.items()} for key, value in kept[1].items()}
            original = ours._capture

            def capture(original=original, kept=kept):
                worked = original()
                with torch.no_grad():
                    for weight, before in zip(ours.model.parameters(), kept[0], strict=True):
                        weight.copy_(before)
                for key, value in kept[1].items():
                    ours.optimizer.state[key] = value
                return worked

            ours._capture = capture
        assert torch.equal(ours(*source.inputs(iteration)), expected)
    assert ours.refusal == "operation not permitted when stream is capturing"
    assert not ours.captured
    assert_same(weights(eager), weights(ours))
    assert ours.scaler.get_scale() == eager.scaler.get_scale()


def test_restored_state_is_captured_anew(prepared, graphs):
    source = source_of(prepared)
    ours = graphed(source)
    for iteration in range(WARM_UP + 1):
        ours(*source.inputs(iteration))
    ours.load_state_dict(ours.state_dict())
    assert not ours.captured
    for iteration in range(WARM_UP + 1):
        ours(*source.inputs(iteration))
    assert [graph.replays for graph in graphs] == [1, 1]


def test_without_a_gpu_no_graph_is_wanted():
    assert not trainer(graph=True).wants_graph


# On a GPU


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_replays_equal_eager_to_the_last_bit(prepared, deterministic, autocast, name):
    source = source_of(prepared, GPU, autocast or torch.float32)
    eager, ours = (trainer(GPU, autocast, source, graph, name, 1e-3) for graph in (False, True))
    for iteration in range(12):
        for learn in (eager, ours):
            learn.set_learning_rate(1e-3 / (1 + iteration))
        assert torch.equal(eager(*source.inputs(iteration)), ours(*source.inputs(iteration)))
    assert (ours.captured, ours.refusal) == (True, None)
    assert_same(weights(eager), weights(ours))
    assert ours.scaler.state_dict() == eager.scaler.state_dict()


@pytest.mark.gpu
def test_replays_equal_eager_to_rounding_otherwise(prepared):
    source = source_of(prepared, GPU)
    eager, ours = (trainer(GPU, None, source, graph) for graph in (False, True))
    for iteration in range(8):
        expected, loss = eager(*source.inputs(iteration)), ours(*source.inputs(iteration))
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
    assert ours.captured


@pytest.mark.gpu
def test_a_replay_skips_updates_that_overflow(prepared):
    """float16's scaler within the graph: weights stay, the scale is halved, and grows again."""
    source = source_of(prepared, GPU, torch.float16)
    learn = trainer(GPU, torch.float16, source, graph=True)
    for iteration in range(WARM_UP + 1):
        learn(*source.inputs(iteration))
    assert learn.captured
    before = weights(learn)
    learn.scaler._scale.fill_(2.0**120)
    learn(*source.inputs(8))
    assert_same(weights(learn), before)
    assert learn.scaler.get_scale() == 2.0**119
    learn.scaler._scale.fill_(8.0)
    learn(*source.inputs(9))
    assert not all(torch.equal(a, b) for a, b in zip(weights(learn), before, strict=True))
    assert learn.scaler.get_scale() == 8.0


@pytest.mark.gpu
def test_another_size_and_validation_run_between_replays_on_a_gpu(prepared, deterministic):
    source, odd = source_of(prepared, GPU), source_of(prepared, GPU, batch_size=1)
    eager, ours = (trainer(GPU, None, source, graph) for graph in (False, True))
    for iteration in range(WARM_UP + 4):
        batch = (odd if iteration == WARM_UP + 2 else source).inputs(iteration)
        assert torch.equal(eager(*batch), ours(*batch))
        with torch.inference_mode():
            ours.model(torch.zeros(1, 1, *SHAPE, device=GPU))
    assert ours.captured
    assert_same(weights(eager), weights(ours))


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", PRECISIONS, ids=str)
def test_captured_steps_learn_one_batch(prepared, autocast):
    source = source_of(prepared, GPU, autocast or torch.float32, augmented=False, batch_size=1)
    learn = trainer(GPU, autocast, source, True, "adamw", 3e-4, base_channels=4)
    batch = source.inputs(0)
    losses = [learn(*batch).item() for _ in range(40)]
    assert learn.captured
    assert losses[-1] < 0.6 * losses[0]
