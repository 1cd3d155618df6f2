import contextlib
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.prediction.fake_graphs import Graph, graphs
from vnet_fast import VNet
from vnet_fast.averages import mean_dice
from vnet_fast.data.phantom import phantoms
from vnet_fast.evaluation.metrics import dice_per_class
from vnet_fast.prediction.components import largest_components
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.passes import Passes
from vnet_fast.training import validation
from vnet_fast.training.validation import Best, chosen, interval, passes_of, seconds_of_a_validation, validate
from vnet_fast.training.weight_average import WeightAverage

__all__ = ["graphs"]
SIZE = (32, 32, 16)


@pytest.fixture(scope="module")
def prepared():
    cases = phantoms(0, 3, SIZE, (4, 4, 6))
    # three classes, one of them in no mask of the last case
    halves = [case.mask * (1 + (np.arange(SIZE[0]) > SIZE[0] // 2)).astype(np.uint8) for case in cases]
    halves[2] = np.minimum(halves[2], 1)
    return [replace(case, mask=mask) for case, mask in zip(cases, halves, strict=True)]


def test_the_time_of_a_validation_is_by_windows(prepared, monkeypatch):
    """One that begins with a small case takes no less."""
    (large,) = phantoms(0, 1, (64, 64, 16), (4, 4, 6))
    clock = iter(range(100))
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    windows = passes_of([large], (16, 32, 32))
    assert passes_of([prepared[1]], (16, 32, 32)) == 1 < windows
    found = seconds_of_a_validation(VNet(base_channels=1), [prepared[1], large], 2, window=(16, 32, 32))
    assert found == 1 + windows


@pytest.mark.parametrize("num_classes", [2, 3])
def test_dice_is_that_of_predicted_labels(prepared, num_classes):
    torch.manual_seed(0)
    model = VNet(num_classes=num_classes, base_channels=2)
    per_case = validate(model, prepared, num_classes)
    assert model.training
    for case in prepared:
        labels = largest_components(predict_probabilities(model, case.image).argmax(0).astype(np.uint8))
        reference = np.minimum(case.mask, 1) if num_classes == 2 else case.mask
        expected = dice_per_class(labels, reference, num_classes)
        assert per_case[case.name] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0 < mean_dice(per_case.values()) < 1
    assert mean_dice(per_case.values()) == pytest.approx(np.nanmean(np.nanmean(list(per_case.values()), axis=0)))


class Constant(torch.nn.Module):
    """Predicts the same labels, whatever it sees."""

    def __init__(self, labels, num_classes):
        super().__init__()
        self.logits = torch.nn.Parameter(
            torch.nn.functional.one_hot(torch.from_numpy(labels).long(), num_classes).movedim(-1, 0)[None].float()
        )

    def forward(self, x):
        return self.logits


def test_validation_keeps_what_prediction_keeps(prepared):
    """Voxels outside of the image count in neither mask, and only the largest component of a class counts."""
    case = replace(prepared[0], mask=np.minimum(prepared[0].mask, 1), extent=((2, 14), (4, 32), (0, 30)))
    inside = np.zeros(case.mask.shape, bool)
    inside[2:14, 4:, :30] = True
    reference = case.mask * inside
    labels = np.where(inside, reference, 1).astype(np.uint8)
    assert labels.sum() > 1.1 * reference.sum()
    # away from the reference, and smaller
    labels[3, 5, 1] = 1
    assert reference[2:5, 4:7, :3].sum() == 0
    assert validate(Constant(labels, 2), [case], 2) == {case.name: [1.0]}


def test_the_first_validation_is_taken_even_if_nothing_can_be_rated():
    best, nothing = Best(), {"a": [math.nan]}
    assert best.improved_by(1, nothing)
    assert not best.improved_by(2, nothing)
    assert best.improved_by(3, {"a": [math.nan], "b": [0.0]})
    assert not best.improved_by(4, nothing)
    assert (best.iteration, best.dice) == (3, 0.0)


def test_a_process_may_have_no_case():
    assert validate(VNet(base_channels=1), [], 2) == {}


def test_a_class_in_neither_mask_is_not_rated(prepared):
    background = Constant(np.zeros(SIZE[::-1], np.uint8), 3)
    np.testing.assert_equal(validate(background, prepared[2:], 3), {prepared[2].name: [0.0, math.nan]})


@pytest.mark.parametrize(
    ("iterations", "batch_size", "cases", "every"),
    [
        # the paper's recipe: ten a run
        (30_000, 2, 8, 3_000),
        (30_000, 2, 40, 3_000),
        # 12 volumes' steps may go into forward passes: 36 of them, for 8 cases 4 times
        (300, 2, 8, 75),
        (600, 2, 40, 600),
        (1, 1, 1, 1),
        (7, 1, 100, 7),
    ],
)
def test_validations_take_a_fiftieth_of_the_time(iterations, batch_size, cases, every):
    assert interval(iterations, batch_size, cases) == every


@pytest.mark.parametrize(("window", "replays"), [(None, [3]), ((16, 16, 32), [13])], ids=["at once", "in windows"])
def test_validation_replays_a_graph_and_keeps_none(prepared, graphs, window, replays):
    """Also of averaged weights, which training swaps, and after an update in place."""
    torch.manual_seed(0)
    model, ours, cases = VNet(base_channels=1, levels=2, norm="batch"), Passes(), [*prepared, *prepared[:2]]
    graphs.models, averaged = [model], WeightAverage(model, 0.5)
    for value in averaged.values.values():
        value.mul_(1.25)
    for _ in range(2):
        for context in (averaged.in_use(), contextlib.nullcontext()):
            with context:
                expected = validate(model, cases, 3, window=window, passes=Passes(graph=False))
                assert graphs.replays == []
                np.testing.assert_equal(validate(model, cases, 3, window=window, passes=ours), expected)
                assert not ours.captured
                assert graphs.replays == replays
                graphs.clear()
        with torch.no_grad():
            model.head.weight.neg_()


def test_validated_cases_are_spread_over_all():
    assert chosen("abcdefgh", None) == chosen("abcdefgh", 8) == chosen("abcdefgh", 99) == list("abcdefgh")
    assert chosen("abcdefgh", 3) == ["a", "c", "f"]
    assert chosen("abcdefgh", 1) == ["a"]


def test_short_memory_ends_no_run(monkeypatch, capsys):
    """Cases are predicted in smaller windows then."""
    torch.manual_seed(0)
    model, forward, cases = VNet(base_channels=1, levels=2), VNet.forward, phantoms(0, 2, (128, 16, 16), (1, 4, 6))
    expected = validate(model, cases, 2, window=(16, 16, 64))

    def scarce(network, x):
        if x.numel() > 64 * 16 * 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(network, x)

    monkeypatch.setattr(VNet, "forward", scarce)
    assert validate(model, cases, 2) == expected
    assert "windows are 64 x 16 x 16 voxels, which is less accurate" in capsys.readouterr().out


def test_memory_that_labels_need_is_not_a_graphs(prepared, graphs, monkeypatch, capsys):
    """The labels of the cases grow until nothing is left for a replay."""
    model, ours, replay = VNet(base_channels=1, levels=2), Passes(), Graph.replay

    def fail_at_last(graph):
        if graph.replays == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        replay(graph)

    monkeypatch.setattr(Graph, "replay", fail_at_last)
    twice = [*prepared, *(replace(case, name=f"{case.name} again") for case in prepared)]
    found = validate(model, twice, 2, passes=ours)
    expected = validate(model, prepared, 2, passes=Passes(graph=False))
    assert found == expected | {f"{name} again": dice for name, dice in expected.items()}
    assert "no CUDA graph of the network, which runs eagerly: out of memory" in capsys.readouterr().out


def test_a_failed_capture_is_said_in_one_of_several_validations(prepared, graphs, capsys):
    model, ours = VNet(base_channels=1, levels=2), Passes()
    graphs.error = RuntimeError("not permitted")
    first, second = (validate(model, prepared, 2, passes=ours) for _ in range(2))
    assert first == second
    assert capsys.readouterr().out == "no CUDA graph of the network, which runs eagerly: not permitted\n"
