import math

import pytest

from vnet_fast.run.configuration import Config
from vnet_fast.training.schedule import learning_rate

RATE = 0.2


def rates(iterations=10, **settings):
    config = Config(learning_rate=RATE, iterations=iterations, **settings)
    return [learning_rate(config, iteration) for iteration in range(iterations)]


def test_the_papers_is_divided_by_ten():
    config = Config(learning_rate=1e-4, lr_step=25_000)
    found = [learning_rate(config, i) for i in (0, 24_999, 25_000, 49_999, 50_000)]
    assert found == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])


def test_a_polynomial():
    assert rates(schedule="poly") == pytest.approx([RATE * (1 - i / 10) ** 0.9 for i in range(10)])


def test_half_a_cosine_wave():
    expected = [RATE * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]
    assert rates(schedule="cosine") == pytest.approx(expected)
    assert expected[5] == pytest.approx(RATE / 2)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_a_warm_up_rises_to_the_full_rate_and_the_rest_falls_from_it(schedule):
    found = rates(14, schedule=schedule, warmup=4)
    assert found[:4] == pytest.approx([RATE / 4, RATE / 2, 3 * RATE / 4, RATE])
    assert found[4:] == pytest.approx(rates(10, schedule=schedule))


def test_a_warm_up_does_not_move_the_papers_steps():
    assert rates(6, lr_step=3, warmup=2)[2:] == rates(6, lr_step=3)[2:]


@pytest.mark.parametrize("schedule", ["step", "poly", "cosine"])
def test_a_warm_up_longer_than_the_run(schedule):
    assert rates(3, schedule=schedule, warmup=100) == pytest.approx([RATE * i / 100 for i in (1, 2, 3)])
    config = Config(learning_rate=RATE, iterations=3, schedule=schedule, warmup=3)
    # asked for beyond the end, as by a source that prefetches
    assert 0 <= learning_rate(config, 5) <= RATE
