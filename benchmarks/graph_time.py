"""The device's time in the replays of a step's graph."""

import torch


class TimedReplays:
    """Stands before a captured step's graph and notes when each replay starts and ends on the device.

    Args:
        step: a `vnet_fast.training.step.Step` that is captured; its graph is private to it, and nothing but a
            benchmark may reach there.
    """

    def __init__(self, step):
        self.graph, self.marks = step._graph, []
        step._graph = self

    def replay(self):
        """One replay, between two events."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        self.marks.append((start, end))

    def seconds(self):
        """The sum over all replays so far, which are waited for."""
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.marks) / 1e3
