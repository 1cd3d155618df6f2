"""Signals to this process, which wait until they are handled: a kernel may deliver one after `os.kill` has returned."""

import os
import signal
import time

# many times what any system takes
SECONDS = 60


def send(number):
    """Sends a signal to this process, and waits for its handler, which puts another handler in its place."""
    handler, end = signal.getsignal(number), time.monotonic() + SECONDS
    os.kill(os.getpid(), number)
    while signal.getsignal(number) == handler:
        assert time.monotonic() < end, f"signal {number} was not handled"
        time.sleep(0.001)
