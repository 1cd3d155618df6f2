import types

import pytest
import torch

from benchmarks import measure, providers, runtimes
from benchmarks.providers import GRAPH, OTHER_PROGRAMS, TIMES_DIRECT, Beside, Provider, limit_cells, predictor_of
from tests.prediction.fake_graphs import graphs
from vnet_fast import VNet

__all__ = ["graphs"]


class Fixture:
    """Calls what pytest-benchmark's fixture would time."""

    stats = types.SimpleNamespace(stats=None)

    def pedantic(self, run, setup, rounds, warmup_rounds):
        for _ in range(warmup_rounds + rounds):
            setup()
            run()


def test_a_baseline_that_fails_costs_the_others_only_their_ratio():
    def fails():
        raise RuntimeError("no memory")

    for make in (fails, lambda: fails):
        beside = Beside(make)
        beside()
        beside()
        assert beside.ratio(1.0, 0) is None


def test_the_baseline_runs_before_each_round(monkeypatch):
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])
    monkeypatch.setattr(providers.time, "perf_counter", lambda: next(ticks))
    ran = []
    beside = Beside(lambda: lambda: ran.append("baseline"))
    measure.time_of(Fixture(), lambda: ran.append("provider"), 3, 1, beside)
    assert ran == ["baseline", "provider"] * 4
    # of 2, 3 and 4 s: the first round does not count
    assert beside.ratio(1.5, 1) == 2.0
    monkeypatch.undo()
    alone = Beside(None)
    alone()
    assert alone.ratio(7.0, 1) == 1.0


def test_times_are_compared_with_the_direct_limit_where_products_are_saved(monkeypatch):
    assert limit_cells(Provider("plain"), 2.0, 1.0) == {"floor, ms": 1e3, "share of floor, %": 50.0}
    monkeypatch.setattr(providers, "ON_GPU", False)
    monkeypatch.setattr(providers.cpu_convolution_choice, "kernels_run", lambda: True)
    assert limit_cells(Provider("vnet_fast"), 0.5, 1.0) == {"floor, ms": 1e3, TIMES_DIRECT: 2.0}
    monkeypatch.setattr(providers.cpu_convolution_choice, "kernels_run", lambda: False)
    assert "share of floor, %" in limit_cells(Provider("vnet_fast"), 2.0, 1.0)


def test_the_forward_pass_of_a_graph_is_a_replay(graphs):
    (provider,) = GRAPH.values()
    model, images = VNet(base_channels=1), torch.randn(3, 1, 1, 16, 16, 16).to(measure.DEVICE)
    model.to(measure.DEVICE)
    predict = predictor_of(provider, model)
    for calls, image in enumerate(images, start=1):
        torch.testing.assert_close(predict(image), predictor_of(Provider("vnet_fast", amp=True), model)(image))
        assert graphs.replays == [calls]


def test_a_forward_pass_that_is_not_captured_is_not_timed(graphs):
    graphs.error = RuntimeError("not permitted")
    predict = predictor_of(Provider("vnet_fast", graph=True), VNet(base_channels=1).to(measure.DEVICE))
    with pytest.raises(AssertionError, match="its forward pass is not captured"):
        predict(torch.zeros(1, 1, 16, 16, 16, device=measure.DEVICE))


@pytest.mark.skipif(measure.ON_GPU, reason="there is a CUDA device")
def test_a_graph_is_skipped_without_a_gpu():
    with pytest.raises(pytest.skip.Exception, match="needs a CUDA device"):
        next(iter(GRAPH.values())).require()


@pytest.mark.exhaustive
@pytest.mark.skipif(measure.ON_GPU, reason="the other programs run on a CPU")
@pytest.mark.parametrize("name", OTHER_PROGRAMS)
def test_other_programs_run_the_same_network(name, monkeypatch):
    monkeypatch.setattr(runtimes, "SIZE", (16, 16, 16))
    runtimes.content.cache_clear()
    provider = OTHER_PROGRAMS[name]
    provider.require()
    image = torch.randn(2, 1, 16, 16, 16)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = Provider("plain").model()(image)
        logits = provider.model()(image)
    runtimes.content.cache_clear()
    error = (logits - expected).norm() / expected.norm()
    assert error <= providers.TOLERANCE[provider.autocast or torch.float32]
