"""CUDA graphs where there is no GPU: the logic around them, on tensors of the CPU."""

import pytest
import torch

from vnet_fast.prediction import passes


class Graph:
    """Like a CUDA graph: capturing computes nothing, and a replay writes the same outputs again.

    It reads the weights where they lay when it was captured, whatever the networks have now.

    Args:
        function: that is captured.
        models: the networks that it may run.
    """

    def __init__(self, function, models):
        self.function, self.replays = function, 0
        self.weights = [(weight, weight.detach()) for model in models for weight in _weights(model)]
        self.outputs = function()
        for output in self.outputs:
            output.fill_(float("nan") if output.is_floating_point() else 77)

    def replay(self):
        now = [weight.data for weight, _ in self.weights]
        for weight, captured in self.weights:
            weight.data = captured
        found = self.function()
        for (weight, _), data in zip(self.weights, now, strict=True):
            weight.data = data
        self.replays += 1
        for output, new in zip(self.outputs, found, strict=True):
            output.copy_(new)


class Graphs(list):
    """The graphs that were captured; `models` are the networks whose weights stay where they were."""

    def __init__(self):
        super().__init__()
        self.models, self.error = [], None

    def capture(self, function):
        """Stands for `captured`; raises `error` if there is one."""
        if self.error is not None:
            function()
            raise self.error
        self.append(Graph(function, self.models))
        return self[-1], self[-1].outputs

    @property
    def replays(self):
        """How often each was replayed."""
        return [graph.replays for graph in self]


def _weights(model):
    return [*model.parameters(), *model.buffers()]


@pytest.fixture
def graphs(monkeypatch):
    """The `Graphs` of passes on the CPU."""
    made = Graphs()
    monkeypatch.setattr(passes, "captured", made.capture)
    monkeypatch.setattr(passes, "_may_capture", lambda x: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    return made
