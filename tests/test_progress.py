import itertools
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from vnet_fast import progress
from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import map_cases


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.05)


def wait_for_lines(capsys, count):
    """The lines that come, at least so many unless it takes too long."""
    err, end = "", time.monotonic() + 10
    while err.count("\n") < count and time.monotonic() < end:
        time.sleep(0.01)
        err += capsys.readouterr().err
    return err.splitlines()


def test_lines_without_a_terminal(often, capsys):
    """They come in the middle of a step, and name the work that it is part of."""
    for number in progress.track(["a", "b"], "predicting", "volumes"):
        for _ in progress.track(range(3), "", "windows"):
            lines = wait_for_lines(capsys, 2)
            break
        expected = f"predicting: {'ab'.index(number)} of 2 volumes, 0 of 3 windows, 0:0"
        assert all(line.startswith(expected) for line in lines[1:])
        assert len(lines) >= 2
    time.sleep(0.2)
    # nothing is printed once the work is done
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_quiet_is_of_a_thread(often, capsys):
    """Nothing is printed in it, and what the user should know is a warning; another thread prints as before."""
    other = threading.Thread(target=lambda: [progress.say("another"), progress.warn("and another")])
    with warnings.catch_warnings(record=True) as found, progress.quiet():
        warnings.simplefilter("always")
        progress.say("a line")
        progress.warn("a warning")
        progress.note("a note")
        for _ in progress.track(range(1), "working", "steps"):
            time.sleep(0.2)
        other.start()
        other.join()
        with progress.quiet(False):
            progress.say("still quiet")
    assert [str(warning.message) for warning in found] == ["a warning", "a note"]
    assert capsys.readouterr() == ("another\n", "warning: and another\n")
    with progress.quiet(False):
        progress.say("a line")
    progress.warn("a warning")
    assert capsys.readouterr() == ("a line\n", "warning: a warning\n")


def test_silent_keeps_warnings_too(often, capsys):
    with warnings.catch_warnings(record=True) as found, progress.silent():
        warnings.simplefilter("always")
        progress.say("a line")
        progress.warn("a warning")
        progress.note("a note")
        with progress.quiet():
            progress.warn("another")
        for _ in progress.track(range(3), "counting", "numbers"):
            time.sleep(0.1)
    assert not found
    assert capsys.readouterr() == ("", "")
    with progress.silent(False):
        progress.say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_threads_that_read_cases_are_as_quiet_as_their_caller(capsys):
    cases = [Case(f"case{number}", Path("image"), Path("mask")) for number in range(20)]
    with warnings.catch_warnings(record=True) as found, progress.quiet():
        warnings.simplefilter("always")
        map_cases(lambda case: progress.note(case.name), cases)
    assert sorted(str(warning.message) for warning in found) == sorted(case.name for case in cases)
    assert capsys.readouterr() == ("", "")
    map_cases(lambda case: progress.note(case.name), cases)
    assert sorted(capsys.readouterr().out.split()) == sorted(case.name for case in cases)


def test_a_line_elsewhere_counts(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.4)

    def longest_pause():
        """Of some more than the seconds of a line, in which lines are printed elsewhere."""
        times = [time.monotonic()]
        for _ in range(12):
            time.sleep(0.05)
            progress.said()
            times.append(time.monotonic())
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    with progress.working("training", None, "iterations", done=7):
        # on a busy machine they may come too late
        for _ in range(100):
            capsys.readouterr()
            if longest_pause() < 0.3:
                break
        assert capsys.readouterr().err == ""
        assert wait_for_lines(capsys, 1)[0].startswith("training: 7 iterations, 0:0")


def test_an_error_ends_the_lines(often, capsys):
    def work():
        with progress.working("exporting"):
            assert wait_for_lines(capsys, 1)[0].startswith("exporting, 0:0")
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        work()
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(often, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in progress.track(iter("ab"), "predicting", "volumes", 2):
        time.sleep(0.12)
    err = capsys.readouterr().err
    assert "predicting:" in err
    # a bar, and no lines
    assert "of 2 volumes" not in err
