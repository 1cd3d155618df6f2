"""Sends signals to the process of the test."""

import os
import signal
import time

# until a handler has run, which some kernels let wait
SECONDS = 60


def send(number, has_come):
    """Sends a signal, and waits until its handler has run.

    Of two signals of a kind that wait for their handler at the same time, one is lost.

    Args:
        number: of the signal.
        has_come: a function of no arguments that tells whether the handler has run; it isn't reached if the handler
            raises an exception.
    """
    # without one, the signal would end all tests of this process, and pytest-xdist would wait for them
    assert callable(signal.getsignal(number)), f"nothing handles {signal.Signals(number).name}"
    os.kill(os.getpid(), number)
    end = time.monotonic() + SECONDS
    while not has_come():
        assert time.monotonic() < end, f"no handler of {signal.Signals(number).name} has run for {SECONDS} s"
        time.sleep(0.001)
