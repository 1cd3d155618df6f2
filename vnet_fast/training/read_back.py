"""Losses on their way from the device to the log."""

import torch

# iterations whose losses are read back at once: a look at every one would wait for the GPU
READ_BACK = 10


class ReadBack:
    """Losses on their way from the device.

    A group is copied when it is full and read when the next one is, so that the device, which is then
    already at work on later iterations, never waits.

    Args:
        start: iterations done before.
    """

    def __init__(self, start):
        self.first = start + 1
        self.pending, self.sent = [], None

    def add(self, loss):
        """The loss of the next iteration, a scalar tensor."""
        self.pending.append(loss)

    @property
    def full(self):
        """Whether a group is to be read."""
        return len(self.pending) >= READ_BACK

    def read(self, everything=False):
        """The losses that have come back: those of the group before, or of all iterations.

        Returns:
            the first one's iteration, counted from 1, and a list of numbers, which may be empty.
        """
        values = [] if self.sent is None else self._arrived()
        if self.pending:
            group = torch.stack(self.pending)
            self.sent, self.pending = (group.to("cpu", non_blocking=True), _mark(group.device)), []
        if self.sent is not None and (everything or self.sent[1] is None):
            values += self._arrived()
        first = self.first
        self.first += len(values)
        return first, values

    def _arrived(self):
        (values, mark), self.sent = self.sent, None
        if mark is not None:
            mark.synchronize()
        return values.tolist()


def _mark(device):
    """A point in the device's work that can be waited for; None where nothing is asynchronous."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
