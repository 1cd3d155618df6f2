"""The average of weights: its formula, and that network, checkpoints and graphs have the right weights at each time."""

import contextlib
import copy
import types

import pytest
import torch
from torch import nn

from vnet_fast import DiceLoss, VNet
from vnet_fast.training import step as step_module
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import WARM_UP, Step
from vnet_fast.training.weight_average import WeightAverage

DECAY = 0.9
SHAPE = (16, 16, 16)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).to(memory_format=torch.channels_last_3d)


def on_device(average):
    """As on a GPU, where the decay is a number that a graph reads."""
    average._on_device = torch.zeros(())
    return average


def averaged_of(model):
    """Parameters and running statistics."""
    return [*model.parameters(), model[1].running_mean, model[1].running_var]


def change(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in averaged_of(model):
            weight += torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("where", [lambda average: average, on_device], ids=["CPU", "GPU"])
def test_against_float64(where):
    model = network()
    average = where(WeightAverage(model, DECAY))
    exact = [weight.detach().double() for weight in averaged_of(model)]
    decays = []
    for update in range(120):
        change(model, update)
        average.advance()
        average.update()
        decays.append(min(DECAY, (1 + update) / (10 + update)))
        exact = [decays[-1] * a + (1 - decays[-1]) * w.double() for a, w in zip(exact, averaged_of(model), strict=True)]
    assert decays[0] == 0.1
    assert decays[-1] == DECAY
    for found, right in zip(average.values.values(), exact, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)
        assert found.dtype == torch.float32
    assert average.updates == 120


def test_what_an_optimiser_moves_is_left_alone_once():
    model = network()
    average = on_device(WeightAverage(model, DECAY))
    moved, others = list(model.parameters())[:2], list(model.parameters())[2:]
    change(model, 0)
    average.advance()
    before = {name: value.clone() for name, value in average.values.items()}
    given = [average.hand_over(weight) for weight in moved]
    assert all(any(value is one for one in average.values.values()) for value in given)
    average.update()
    for name, weight in average.weights.items():
        assert torch.equal(average.values[name], before[name]) == any(weight is one for one in moved)
    assert others
    average.advance()
    average.update()
    assert not any(torch.equal(value, before[name]) for name, value in average.values.items())
    # one that is no weight of the network, and a CPU, where an average is moved by PyTorch
    assert average.hand_over(torch.zeros(3)) is None
    assert WeightAverage(model, DECAY).hand_over(moved[0]) is None


def test_an_optimiser_may_move_all_of_them():
    model = nn.Linear(2, 2)
    average = on_device(WeightAverage(model, DECAY))
    for weight in model.parameters():
        average.hand_over(weight)
    average.update()


def test_the_network_has_them_within_the_context_only():
    model = network()
    average = WeightAverage(model, DECAY)
    change(model, 0)
    average.advance()
    average.update()
    raw = [weight.detach().clone() for weight in averaged_of(model)]
    addresses = [weight.data_ptr() for weight in averaged_of(model)]
    averaged = [value.clone() for value in average.values.values()]
    with average.in_use():
        assert all(map(torch.equal, averaged_of(model), averaged))
        # a counter has no average
        assert model[1].num_batches_tracked == 0
        assert all(map(torch.equal, average.state_dict()["raw"].values(), raw))
    with contextlib.suppress(KeyError), average.in_use():
        raise KeyError
    assert all(map(torch.equal, averaged_of(model), raw))
    assert all(map(torch.equal, average.values.values(), averaged))
    assert all(map(torch.equal, average.state_dict()["raw"].values(), raw))
    # where a graph reads and writes them
    assert [weight.data_ptr() for weight in averaged_of(model)] == addresses


# In a step


def step_of(name="adamw", ema=DECAY, **settings):
    torch.manual_seed(0)
    model = VNet(base_channels=1)
    return Step(model, DiceLoss.paper(), make_optimizer(model, name, 0.01, 0.9, 5e-4), ema=ema, **settings)


def batch(seed):
    image = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return image, (image > 0.5).to(torch.uint8)


def numbers(step):
    return [*step.model.state_dict().values(), *(step.average.values.values() if step.average else [])]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_training_does_not_depend_on_it():
    with_average, without = step_of(), step_of(ema=None)
    for seed in range(3):
        assert torch.equal(with_average(*batch(seed)), without(*batch(seed)))
        with with_average.averaged(), without.averaged():
            pass
    assert_same(with_average.model.parameters(), without.model.parameters())
    assert "average" not in without.state_dict()


@pytest.mark.parametrize("name", ["adamw", "nesterov"])
def test_a_checkpoint_has_the_average_and_goes_on_with_the_weights(name):
    """To the last bit, from a network whose weights are the averaged ones."""
    whole, first, second = (step_of(name, clip=0.1) for _ in range(3))
    for seed in range(4):
        whole(*batch(seed))
        if seed < 2:
            first(*batch(seed))
    with first.averaged():
        model, state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state_dict())
    assert_same(model.values(), first.average.values.values())
    second.model.load_state_dict(model)
    second.load_state_dict(state)
    for seed in (2, 3):
        second(*batch(seed))
    assert_same(numbers(second), numbers(whole))


def test_a_graphs_replays_update_it(monkeypatch):
    """Captured once, with a decay that rises: what the graph reads is set before each replay."""
    graphed, eager = step_of(clip=0.1), step_of(clip=0.1)
    for step in (graphed, eager):
        on_device(step.average)
    replayed = []

    def captured(function):
        loss = torch.zeros(())
        return types.SimpleNamespace(replay=lambda: replayed.append(loss.copy_(function()))), loss

    monkeypatch.setattr(step_module, "captured", captured)
    monkeypatch.setattr(step_module, "on_side_stream", lambda function: function())
    graphed.wants_graph = True
    number = graphed.average._on_device
    for seed in range(WARM_UP + 3):
        graphed(*batch(seed))
        eager(*batch(seed))
        with graphed.averaged():
            # as a validation between two replays
            pass
    assert len(replayed) == 3
    # a graph reads where it was when it was captured
    assert graphed.average._on_device is number
    assert_same(numbers(graphed), numbers(eager))
