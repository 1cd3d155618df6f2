import numpy as np
import pytest

from vnet_fast.data.intensity import RANK_LEVELS, from_ranks, normalise, to_ranks


def volume(seed=0, shape=(9, 11, 13), scale=1.0, offset=0.0):
    return (offset + scale * np.random.default_rng(seed).gamma(2, 1, shape)).astype(np.float32)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (3000, -970), (1e-3, 5)])
def test_zero_mean_and_unit_variance(scale, offset):
    values = normalise(volume(scale=scale, offset=offset, shape=(20, 30, 25)))
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(0, abs=2e-3)
    assert values.std() == pytest.approx(1, abs=2e-3)


def test_clipped_at_the_percentiles():
    raw = volume(shape=(20, 30, 25))
    spiked = raw.copy()
    spiked.flat[:20] = 1e6
    values, reference = normalise(spiked), normalise(raw)
    # outliers stand out no further than the 99.5th percentile
    assert values.max() == pytest.approx(reference.max(), rel=0.1)
    low, high = np.percentile(raw[raw > raw.min()], [0.5, 99.5])
    assert (reference == reference.max()).sum() == (raw >= high).sum()
    assert (reference == reference.min()).sum() == (raw <= low).sum()


def test_a_constant_surround_does_not_count():
    raw = volume(shape=(10, 10, 10), offset=1)
    padded = np.pad(raw, 6)
    inside = (slice(6, -6),) * 3
    assert np.corrcoef(normalise(padded)[inside].ravel(), normalise(raw).ravel())[0, 1] > 0.9999
    assert normalise(padded)[inside].mean() == pytest.approx(0, abs=0.01)


def test_outside_of_the_image_is_darkest():
    raw = volume()
    raw[:3] = np.nan
    values = normalise(raw)
    assert np.isfinite(values).all()
    assert (values[:3] == values.min()).all()


def test_normalised_by_a_part():
    raw = volume(shape=(20, 20, 20), offset=1)
    part = (slice(4, 14),) * 3
    raw[0] = 50
    raw[-1] = np.nan
    values, alone = normalise(raw, raw[part]), normalise(raw[part])
    np.testing.assert_array_equal(values[part], alone)
    # beyond the part's percentiles all is clipped
    assert (values[0] == alone.max()).all()
    assert (values[-1] == alone.min()).all()
    with pytest.raises(ValueError, match="all voxels have the same value"):
        normalise(raw, raw[0])


@pytest.mark.parametrize("values", [np.zeros((3, 3, 3)), np.full((2, 2, 2), 7.0)])
def test_constant_volume(values):
    with pytest.raises(ValueError, match="all voxels have the same value"):
        normalise(values)


def test_nothing_but_the_outside():
    with pytest.raises(ValueError, match="has no voxels"):
        normalise(np.full((2, 2, 2), np.nan))


@pytest.mark.parametrize("quantised", [False, True])
def test_ranks_give_the_volume_back(quantised):
    values = normalise(volume(shape=(40, 50, 60)).round(1) if quantised else volume(shape=(40, 50, 60)))
    ranks, table = to_ranks(values)
    assert ranks.dtype == np.uint16
    assert table.shape == (RANK_LEVELS,)
    assert (np.diff(table) >= 0).all()
    restored = from_ranks(ranks, table)
    # a level holds 1/65535 of the voxels: no value moves further in their order than that
    order, level = np.sort(values, axis=None), values.size / RANK_LEVELS
    below, above = (np.searchsorted(order, restored, side=side) for side in ("left", "right"))
    assert (below - level - 1 <= np.searchsorted(order, values, side="right")).all()
    assert (above + level + 1 >= np.searchsorted(order, values, side="left")).all()
    assert np.abs(restored - values).mean() <= 1e-4 * np.ptp(values)


def test_ranks_keep_the_order():
    values = volume(shape=(5, 5, 5))
    ranks, _ = to_ranks(values)
    order = np.argsort(values, axis=None)
    assert (np.diff(ranks.ravel()[order].astype(int)) > 0).all()
    assert (ranks == 0).sum() == 1


def test_matching_by_the_definition():
    """A volume looked up in another's table has the other's sorted values in its own order."""
    source, reference = volume(1, (16, 16, 16)), 40 + 7 * volume(2, (16, 16, 16)) ** 2
    ranks, _ = to_ranks(source)
    _, table = to_ranks(reference)
    matched = from_ranks(ranks, table)
    expected = np.empty_like(source)
    expected.ravel()[np.argsort(source, axis=None)] = np.sort(reference, axis=None)
    assert np.abs(matched - expected).max() <= 1e-3 * np.ptp(reference)


def test_matching_leaves_the_surround_dark():
    source, reference = np.pad(volume(1) + 1, 4), np.pad(volume(2) + 5, 2)
    ranks, _ = to_ranks(source)
    _, table = to_ranks(reference)
    matched = from_ranks(ranks, table)
    assert (matched[source == 0] == 0).all()
    assert (matched[source > 0] > 4).all()


def test_one_level_of_brightness():
    ranks, table = to_ranks(np.array([0, 0, 3, 3], dtype=np.float32))
    np.testing.assert_array_equal(from_ranks(ranks, table), [0, 0, 3, 3])
    ranks, table = to_ranks(np.zeros(4, dtype=np.float32))
    np.testing.assert_array_equal(from_ranks(ranks, table), np.zeros(4))


def test_two_values_stay_apart():
    mask = np.zeros((6, 6, 6), np.float32)
    mask[2:4, 2:4, 2:4] = 200
    values = normalise(mask)
    assert values.std() == pytest.approx(1, abs=1e-5)
    assert len(np.unique(values)) == 2
