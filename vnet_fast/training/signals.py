"""What Ctrl-C and SIGTERM do to a training run."""

import signal


class StopSignal:
    """Remembers SIGINT or SIGTERM, so that a step is finished; a second one ends at once.

    Args:
        second_ends: whether it does; `torchrun` passes on what the processes have received already.
    """

    def __init__(self, second_ends=True):
        self.number, self.second_ends = None, second_ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        self.number = number
        if self.second_ends:
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, signal.SIG_DFL)
