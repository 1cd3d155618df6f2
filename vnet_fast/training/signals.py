"""What Ctrl-C and SIGTERM do to a training run."""

import signal
from types import FrameType


class StopSignal:
    """Remembers SIGINT or SIGTERM, so that the current step can finish. A second signal ends the process at once.

    Args:
        second_ends: whether it does. Under `torchrun` it must not, because `torchrun` repeats the signals that the
            processes have received already.

    Attributes:
        number: of the signal that came, or None.
    """

    def __init__(self, second_ends: bool = True) -> None:
        self.number: int | None = None
        self.second_ends = second_ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.second_ends:
            for stop in (signal.SIGINT, signal.SIGTERM):
                signal.signal(stop, signal.SIG_DFL)
