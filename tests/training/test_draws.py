import numpy as np
import pytest

from vnet_fast.training.draws import sample_batch

SHAPE = (12, 30, 26)


def test_draws_depend_on_seed_and_iteration_alone():
    for iteration in (0, 7, 12_345):
        a, b = (sample_batch(5, iteration, 2, 11, SHAPE) for _ in range(2))
        for name in ("cases", "intensities_of", "deformed", "control_points"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert not np.array_equal(
        sample_batch(5, 1, 2, 11, SHAPE).control_points, sample_batch(5, 2, 2, 11, SHAPE).control_points
    )
    orders = [[sample_batch(seed, i, 1, 11, SHAPE).cases[0] for i in range(11)] for seed in (5, 6)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("batch_size", "cases"), [(2, 7), (3, 2), (1, 5), (4, 4)])
def test_every_case_is_taken_once_an_epoch(batch_size, cases):
    taken = np.concatenate([sample_batch(0, i, batch_size, cases, SHAPE).cases for i in range(3 * cases)])
    for epoch in taken[: len(taken) // cases * cases].reshape(-1, cases):
        assert sorted(epoch) == list(range(cases))


def test_strength_of_the_deformation_is_the_papers():
    drawn = [sample_batch(0, i, 2, 9, (64, 128, 128)) for i in range(400)]
    deformed = np.concatenate([d.deformed for d in drawn])
    assert deformed.mean() == pytest.approx(0.5, abs=0.05)
    points = np.concatenate([d.control_points for d in drawn])
    assert points[deformed].std() == pytest.approx(15, rel=0.02)
    assert not points[~deformed].any()
    half = np.concatenate([sample_batch(0, i, 2, 9, (32, 64, 64)).control_points for i in range(400)])
    assert half[deformed].std() == pytest.approx(7.5, rel=0.02)


def test_without_augmentation_the_cases_are_the_same():
    plain, augmented = (sample_batch(3, 8, 4, 9, SHAPE, augmented=flag) for flag in (False, True))
    np.testing.assert_array_equal(plain.cases, augmented.cases)
    np.testing.assert_array_equal(plain.intensities_of, plain.cases)
    assert not plain.deformed.any()
    assert not plain.control_points.any()
