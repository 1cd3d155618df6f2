"""The device's time in the replays of a step's graph."""

import torch


class TimedReplays:
    """Replaces the graph of a captured step, and records when each replay starts and ends on the device.

    Args:
        step: a captured `vnet_fast.training.step.Step`. Its graph is private, and only this benchmark may use it.
    """

    def __init__(self, step):
        self.graph, self.marks = step._graph, []
        step._graph = self

    def replay(self):
        """Replays the graph between two events."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        self.marks.append((start, end))

    def seconds(self):
        """The device's seconds in all replays so far, after the last one has ended."""
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in self.marks) / 1e3
