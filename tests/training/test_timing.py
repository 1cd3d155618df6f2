import re
import types

import pytest
import torch

from vnet_fast.command_line import MAX_INT
from vnet_fast.distributed import Processes
from vnet_fast.run.configuration import Config
from vnet_fast.training import timing
from vnet_fast.training.timing import SECONDS, TIMED, UNTIMED, Timing, duration
from vnet_fast.training.validation import intervals

CPU = torch.device("cpu")


class Clock:
    """A clock that only a test moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    return clock


def timing_of(config, cases=5):
    return Timing(config, CPU, Processes(), lambda iterations: intervals(config, iterations, 2, cases))


def run(clock, timed, each):
    """Iterations until they are timed, the first of which takes long; returns their number."""
    clock.now += 60
    count = 1
    while not timed.add():
        clock.now += each
        count += 1
    return count


@pytest.mark.parametrize(
    ("each", "expected"), [(0.5, UNTIMED + SECONDS / 0.5), (60.0, UNTIMED + TIMED)], ids=["many", "few"]
)
def test_iterations_are_timed_without_the_first(clock, each, expected):
    timed = timing_of(Config())
    assert run(clock, timed, each) == expected
    assert timed.each == pytest.approx(each)


@pytest.mark.parametrize("minutes", [5, 60])
@pytest.mark.parametrize("settings", [{}, {"val_every": 7}, {"save_every": 50}], ids=str)
def test_what_fits_in_some_minutes(clock, minutes, settings):
    config = Config(minutes=minutes, **settings)
    timed = timing_of(config)
    timed.validation_seconds, timed.save_seconds = 3.0, 1.5
    done = run(clock, timed, 0.25)
    iterations, left = timed.iterations(done), 60 * minutes - (clock.now - timed.started)

    def seconds(iterations):
        val_every, save_every = intervals(config, iterations, 2, 5)
        validations, saves = -(-iterations // val_every), -(-iterations // save_every)
        return (iterations - done) * 0.25 + 4.5 * validations + 1.5 * saves

    assert seconds(iterations) <= left < seconds(iterations) + 10
    validations = -(-iterations // intervals(config, iterations, 2, 5)[0])
    line = (
        f"planned: {iterations} iterations of 0.25 s each, which with {validations} validations take {minutes} minutes"
    )
    assert timed.plan(iterations) == line


def test_no_time_is_left(clock):
    timed = timing_of(Config(minutes=0.001))
    done = run(clock, timed, 1.0)
    # one more, with which the last validation is logged
    assert timed.iterations(done) == done + 1
    planned = f"planned: {done + 1} iterations of 1 s each, which with 1 validation take "
    assert re.fullmatch(rf"{planned}\d+ seconds, more than 0.001 minutes", timed.plan(done + 1))


@pytest.mark.parametrize(
    ("minutes", "seconds", "given", "expected"),
    [
        (10, 60, None, 40),
        (10, 61, None, 39),
        (10, 600, None, 4),
        # at least one, however long it takes
        (10, 1e6, None, 1),
        # a number that is given is not changed
        (10, 600, 40, 40),
        (10, 0.0, None, 40),
    ],
)
def test_a_validation_takes_a_tenth_of_the_minutes(minutes, seconds, given, expected):
    timed = timing_of(Config(minutes=minutes, val_cases=given))
    assert timed.affordable(40, seconds) == expected
    assert timed.validation_seconds == pytest.approx(seconds * expected / 40)


def test_a_process_validates_its_share_of_the_cases():
    timed = timing_of(Config(minutes=10))
    timed.processes = types.SimpleNamespace(count=4, first=lambda value: value)
    # 2 of 8 cases for each process take 120 s, and one case for each half of that
    assert timed.affordable(8, 120.0) == 4
    assert timed.validation_seconds == 60
    assert timed.affordable(8, 480.0) == 1
    assert timed.validation_seconds == 240


def test_no_more_iterations_than_a_run_can_store(clock):
    timed = timing_of(Config(minutes=1e30))
    assert timed.iterations(run(clock, timed, 1.0)) == MAX_INT


@pytest.mark.parametrize(
    ("settings", "each", "expected"),
    [
        ({"data": "x"}, 6.6, "planned: 30000 iterations of 6.6 s each, which take 2.3 days"
         "; --recipe fast --minutes M learns sooner"),
        ({"data": "x", "recipe": "fast"}, 6.6, "planned: 30000 iterations of 6.6 s each, which take 2.3 days"),
        ({"data": "x"}, 0.1, "planned: 30000 iterations of 0.1 s each, which take 50 minutes"),
        ({}, 6.6, "planned: 30000 iterations of 6.6 s each, which take 2.3 days"),
    ],
    ids=["the paper's", "fast", "short", "phantoms"],
)  # fmt: skip
def test_a_long_run_of_the_papers_recipe_names_the_other(clock, settings, each, expected):
    timed = timing_of(Config(**settings))
    timed.each = each
    assert timed.plan(30_000) == expected


def test_durations():
    assert [duration(seconds) for seconds in (40, 90, 600, 5399)] == [
        "40 seconds",
        "1.5 minutes",
        "10 minutes",
        "90 minutes",
    ]
    assert [duration(hours * 3600) for hours in (1.5, 47, 56)] == ["1.5 hours", "47.0 hours", "2.3 days"]
