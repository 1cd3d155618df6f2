"""What is drawn for the transforms of a batch."""

import dataclasses

import numpy as np
import pytest

from vnet_fast.ops.transform_rows import (
    BRIGHTNESS,
    CELLS,
    CONTRAST,
    GAMMA,
    INVERTED,
    MOVED,
    NOISE,
    SEED,
    identity_row,
)
from vnet_fast.run.augmentation import Augmentation
from vnet_fast.training.draws import BatchSampler, sample_batch
from vnet_fast.training.transforms import affine_map, lattice_cells

SHAPE, SPACING = (12, 30, 26), (1.0, 1.0, 2.5)
EVERYTHING = Augmentation(
    rotation=(0.4, 30, 10), scaling=(0.4, 0.5, 2), flip="xz", brightness=(0.4, 0.5, 2), contrast=(0.4, 0.8, 1.25),
    gamma=(0.4, 0.7, 1.5), noise=(0.4, 0.3), low_resolution=(0.4, 3),
)  # fmt: skip
IDENTITY = identity_row(SHAPE)


def rows_of(augmentation, batches=300):
    return np.concatenate(
        [sample_batch(0, i, 4, 9, SHAPE, augmentation=augmentation, spacing=SPACING).transforms for i in range(batches)]
    )


def only(**settings):
    return rows_of(Augmentation(**settings))


def test_the_papers_draws_do_not_depend_on_transforms():
    paper, more = (BatchSampler(5, 3, 11, SHAPE, augmentation=kind)(7) for kind in (Augmentation(), EVERYTHING))
    assert paper.transforms is None
    for ours, expected in zip(more.arrays, paper.arrays, strict=False):
        np.testing.assert_array_equal(ours, expected)
    assert more.transforms.dtype == np.float32


def test_the_papers_draws_are_those_of_before():
    """Runs that were begun before there were transforms go on with the same batches."""
    batch = sample_batch(5, 12, 3, 11, SHAPE)
    assert batch.cases.tolist() == [5, 4, 1]
    assert batch.intensities_of.tolist() == [9, 7, 7]
    assert batch.deformed.tolist() == [False, True, True]
    assert batch.control_points[1, :, 0, 0, 0].tolist() == [3.9529216289520264, -3.7643253803253174]


def test_a_transform_does_not_change_the_draws_of_others():
    everything = rows_of(EVERYTHING, 20)
    for name, columns in (("gamma", [GAMMA, INVERTED]), ("noise", [NOISE]), ("rotation", [])):
        off = (0.0, *getattr(EVERYTHING, name)[1:])
        without = rows_of(dataclasses.replace(EVERYTHING, **{name: off}), 20)
        others = np.setdiff1d(np.arange(CELLS, len(IDENTITY)), [*columns, MOVED])
        np.testing.assert_array_equal(without[:, others], everything[:, others])


def test_parts_of_a_batch_have_its_transforms():
    whole = BatchSampler(3, 4, 7, SHAPE, augmentation=EVERYTHING)(5)
    parts = [BatchSampler(3, 2, 7, SHAPE, part=part, parts=2, augmentation=EVERYTHING)(5) for part in range(2)]
    np.testing.assert_array_equal(np.concatenate([part.transforms for part in parts]), whole.transforms)


def test_without_augmentation_there_are_no_transforms():
    sampler = BatchSampler(3, 4, 7, SHAPE, augmented=False, augmentation=EVERYTHING)
    assert not sampler.transforms
    assert sampler(5).transforms is None


def test_probabilities_of_deformation_and_matching():
    settings = Augmentation(deformation=0.2, matching=0.3)
    batches = [sample_batch(0, i, 4, 50, SHAPE, augmentation=settings) for i in range(300)]
    assert np.mean([batch.deformed for batch in batches]) == pytest.approx(0.2, abs=0.04)
    # of 50 cases a volume takes its own histogram now and then
    own = np.mean([batch.intensities_of == batch.cases for batch in batches])
    assert own == pytest.approx(1 - 0.3 * 49 / 50, abs=0.04)
    never = sample_batch(0, 0, 4, 50, SHAPE, augmentation=Augmentation(deformation=0.0, matching=0.0))
    assert not never.deformed.any()
    np.testing.assert_array_equal(never.intensities_of, never.cases)


@pytest.mark.parametrize(("name", "column"), [("brightness", BRIGHTNESS), ("contrast", CONTRAST), ("gamma", GAMMA)])
def test_factors(name, column):
    rows = only(**{name: (0.3, 0.5, 2.0)})
    factors = rows[rows[:, column] != 1, column]
    assert len(factors) / len(rows) == pytest.approx(0.3, abs=0.05)
    assert 0.5 <= factors.min() < 0.55
    assert 1.9 < factors.max() <= 2
    # as often below 1 as above
    assert np.mean(factors < 1) == pytest.approx(0.5, abs=0.08)
    others = np.setdiff1d(np.arange(len(IDENTITY)), [column, INVERTED, SEED, SEED + 1])
    assert (rows[:, others] == IDENTITY[others]).all()


def test_gamma_is_inverted_now_and_then():
    assert only(gamma=(1, 0.7, 1.5))[:, INVERTED].mean() == pytest.approx(0.25, abs=0.04)


def test_noise():
    rows = only(noise=(0.3, 0.2))
    deviations = rows[rows[:, NOISE] > 0, NOISE]
    assert len(deviations) / len(rows) == pytest.approx(0.3, abs=0.05)
    assert deviations.mean() == pytest.approx(0.1, abs=0.015)
    assert 0.19 < deviations.max() <= 0.2
    seeds = rows[:, SEED] + 65536.0 * rows[:, SEED + 1]
    assert (seeds == np.floor(seeds)).all()
    assert len(np.unique(seeds)) == len(rows)
    assert rows[:, SEED : SEED + 2].max() < 2**16


def test_flips():
    rows = only(flip="xz")
    signs = rows[:, [0, 5, 10]]
    assert (np.abs(rows[:, :12].reshape(-1, 3, 4)[:, :, :3]) == np.eye(3)).all()
    assert np.mean(signs < 0, axis=0).tolist() == pytest.approx([0.5, 0, 0.5], abs=0.05)
    np.testing.assert_array_equal(rows[:, 3], np.where(signs[:, 0] < 0, 25, 0))
    np.testing.assert_array_equal(rows[:, MOVED], (signs < 0).any(1))


def test_rotations_are_rigid_in_mm():
    rows = only(rotation=(0.5, 30, 10))
    moved = rows[rows[:, MOVED] > 0]
    assert len(moved) / len(rows) == pytest.approx(0.5, abs=0.05)
    matrices = moved[:, :12].reshape(-1, 3, 4).astype(np.float64)
    rigid = np.array(SPACING)[:, None] * matrices[:, :, :3] / np.array(SPACING)
    np.testing.assert_allclose(rigid @ rigid.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rigid.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rigid), 1, atol=1e-5)
    # the centre stays
    centre = (np.array(SHAPE[::-1]) - 1) / 2
    np.testing.assert_allclose(
        matrices[:, :, :3] @ centre + matrices[:, :, 3], np.tile(centre, (len(moved), 1)), atol=1e-4
    )
    degrees = np.degrees(np.arctan2(rigid[:, 1, 0], rigid[:, 0, 0]))
    tilts = np.degrees(np.arcsin(-rigid[:, 2, 0]))
    for angles, largest in ((degrees, 30), (tilts, 10)):
        assert 0.95 * largest < np.abs(angles).max() <= largest + 1e-3
        assert angles.mean() == pytest.approx(0, abs=0.05 * largest)
        assert angles.std() == pytest.approx(largest / 3**0.5, rel=0.07)


def test_scaling_enlarges():
    matrix = affine_map(np.zeros(3), 2.0, np.zeros(3, bool), SHAPE, SPACING)
    np.testing.assert_allclose(matrix[:, :3], np.eye(3) / 2)
    scales = 1 / only(scaling=(1, 0.5, 2.0))[:, 0]
    assert 0.5 - 1e-6 <= scales.min() < 0.55
    assert 1.9 < scales.max() <= 2 + 1e-6


def test_low_resolution():
    assert lattice_cells(1.0, SHAPE, SPACING).tolist() == [25, 29, 11]
    assert lattice_cells(2.0, SHAPE, SPACING).tolist() == [12, 14, 11]
    assert lattice_cells(5.0, SHAPE, SPACING).tolist() == [5, 6, 6]
    assert lattice_cells(5.0, (1, 2, 3), SPACING).tolist() == [1, 1, 0]
    cells = only(low_resolution=(0.5, 2.5))[:, CELLS]
    assert np.mean(cells < 25) == pytest.approx(0.5, abs=0.06)
    assert cells.min() == 10
