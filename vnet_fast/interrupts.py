"""Ctrl-C at any moment ends a command, also at those where Python can only report an exception."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

# until the code that can't be interrupted, such as the callback of a weak reference, has ended
SECONDS = 0.02


@contextlib.contextmanager
def repeated_interrupts() -> Iterator[None]:
    """Repeats a KeyboardInterrupt that Python would print and forget, while the block runs.

    Python calls finalizers and callbacks of weak references where nothing can catch what they raise. An exception there
    goes to `sys.unraisablehook`, and the program runs on. Every import has such callbacks.
    """
    before = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        timer = threading.Timer(SECONDS, _thread.interrupt_main)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


def end_at_interrupts() -> None:
    """From now on, Ctrl-C ends the process at once: nothing is left to do but what Python does at its end, and an
    exception there would only be a traceback.
    """
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if threading.current_thread() is threading.main_thread() and not is_ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
