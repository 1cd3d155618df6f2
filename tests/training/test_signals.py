"""What a run that is part of a longer program does about signals."""

import signal
import threading

import pytest

from tests.send_signal import send
from vnet_fast.training.signals import StopSignal, embedded, restored_handlers

HANDLED = signal.SIGINT, signal.SIGTERM


def handlers():
    return [signal.getsignal(number) for number in HANDLED]


def test_the_programs_handlers_are_restored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = handlers()
    with restored_handlers():
        StopSignal()
        assert handlers() != before
    assert handlers() == before


@pytest.mark.parametrize("number", HANDLED)
def test_a_second_signal_is_the_programs(number):
    came = []
    signal.signal(number, lambda *given: came.append(given[0]))
    with embedded() as received:
        stop = StopSignal()
        send(number, lambda: stop.number)
        assert (stop.number, received.number, came) == (number, number, [])
        send(number, lambda: came)
        assert came == [number]


def test_the_last_of_several_runs_tells_too():
    """Of a cross-validation, each fold remembers its own signal."""
    with embedded() as received:
        first = StopSignal()
        second = StopSignal()
        send(signal.SIGINT, lambda: second.number)
    assert (first.number, second.number, received.number) == (None, signal.SIGINT, signal.SIGINT)


def test_outside_of_it_a_second_signal_ends_the_process():
    with embedded():
        pass
    stop = StopSignal()
    send(signal.SIGINT, lambda: stop.number)
    assert handlers() == [signal.SIG_DFL] * 2


def test_another_thread_has_no_handlers():
    before, found = handlers(), []

    def run():
        with embedded() as received:
            found.append((StopSignal().number, received.number, handlers()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(None, None, before)]
    assert handlers() == before
