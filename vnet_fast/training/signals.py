"""What Ctrl-C and SIGTERM do to a training run."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Received:
    """The signals of runs that are part of a longer program.

    Args:
        handlers: those of the program, by the number of the signal.
        number: of the last one that came, or None.
    """

    handlers: dict[int, Any]
    number: int | None = None

    def restore(self) -> None:
        """Gives the signals back to the program."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


_received: ContextVar[Received | None] = ContextVar("received", default=None)


@contextlib.contextmanager
def restored_handlers() -> Iterator[Received]:
    """Restores the handlers of signals that a run replaces."""
    handlers = {number: signal.getsignal(number) for number in STOPS} if _is_main_thread() else {}
    # one that is None was not set by Python, which can't set it again
    before = Received({number: handler for number, handler in handlers.items() if handler is not None})
    try:
        yield before
    finally:
        before.restore()


@contextlib.contextmanager
def embedded() -> Iterator[Received]:
    """Makes the runs within the block part of a longer program.

    A second signal does what the program does about it, instead of ending the process.

    Yields:
        the signals that came.
    """
    with restored_handlers() as received:
        token = _received.set(received)
        try:
            yield received
        finally:
            _received.reset(token)


def _is_main_thread() -> bool:
    """Whether this is the thread that Python lets handle signals."""
    return threading.current_thread() is threading.main_thread()


class StopSignal:
    """Remembers SIGINT or SIGTERM, so that the current step can finish. A second signal ends the process at once.

    In another thread than the main one there is nothing to remember.

    Args:
        second_ends: whether it does. Under `torchrun` it must not, because `torchrun` repeats the signals that the
            processes have received already.

    Attributes:
        number: of the signal that came, or None.
    """

    def __init__(self, second_ends: bool = True) -> None:
        self.number: int | None = None
        self.second_ends = second_ends
        self.received = _received.get()
        if _is_main_thread():
            for number in STOPS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self.received:
            self.received.number = number
        if self.second_ends and self.received:
            self.received.restore()
        elif self.second_ends:
            for stop in STOPS:
                signal.signal(stop, signal.SIG_DFL)
