import numpy as np
import pytest
from scipy import ndimage

from vnet_fast.data.phantom import LAWS, _scan, phantom, phantoms

SIZE, SPACING = (64, 64, 32), (2.0, 2.0, 3.0)


def test_same_seed_same_volume():
    for a, b in zip(phantom(3), phantom(3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(phantom(3)[1], phantom(4)[1])


@pytest.mark.parametrize("seed", range(8))
def test_gland_is_one_smooth_piece_of_a_prostates_size(seed):
    image, mask = phantom(seed)
    assert image.shape == mask.shape == SIZE[::-1]
    assert image.dtype == np.float32
    assert set(np.unique(mask)) == {0, 1}
    pieces, count = ndimage.label(mask)
    assert np.bincount(pieces.ravel())[1:].max() >= 0.99 * mask.sum(), count
    millilitres = mask.sum() * np.prod(SPACING) / 1000
    assert 8 <= millilitres <= 120


def test_size_and_spacing_change_the_sampling_not_the_gland():
    coarse, fine = phantom(1)[1], phantom(1, (128, 128, 64), (1.0, 1.0, 1.5))[1]
    assert fine.shape == (64, 128, 128)
    assert fine.sum() / 8 == pytest.approx(coarse.sum(), rel=0.35)


def test_scanners_differ_in_their_intensities():
    ranges = [np.percentile(phantom(seed)[0], [1, 99]) for seed in range(len(LAWS))]
    assert phantom(1)[0].min() < 0 < min(phantom(0)[0].min(), phantom(3)[0].min())
    assert ranges[1][1] > 4000
    assert ranges[3][1] < 400
    assert ranges[2][1] > 2 * ranges[0][1]


def test_no_threshold_finds_the_gland():
    """The task is one for a network: the best threshold is far from the mask."""
    for seed in range(4):
        image, mask = phantom(seed)
        inside = mask.astype(bool)
        best = 0
        for low in np.percentile(image, np.arange(0, 100, 5)):
            for high in np.percentile(image, np.arange(5, 101, 5)):
                chosen = (image >= low) & (image <= high)
                best = max(best, 2 * (chosen & inside).sum() / (chosen.sum() + inside.sum()))
        assert best < 0.5


def beside_the_gland(seed, offset):
    """Mean brightness over the gland's, in a ball of 6 mm at an offset in mm (z, y, x) from its edge."""
    image, mask = phantom(seed)
    places = np.argwhere(mask) * SPACING[::-1]
    centre, half = places.mean(0), np.ptp(places, axis=0) / 2
    at = centre + np.sign(offset) * half + offset
    distance = np.sqrt(((np.argwhere(mask >= 0) * SPACING[::-1] - at) ** 2).sum(1)).reshape(mask.shape)
    low = image.min()
    return (image[distance < 6].mean() - low) / (image[mask > 0].mean() - low)


def test_bladder_and_rectum():
    above = [beside_the_gland(seed, np.array([14.0, 0, 0])) for seed in range(8)]
    beside = [beside_the_gland(seed, np.array([0, 0, 14.0])) for seed in range(8)]
    behind = [beside_the_gland(seed, np.array([0, 12.0, 0])) for seed in range(8)]
    # the bladder is bright, the rectum dark or bright, the tissue at the gland's sides neither
    assert np.median(above) > 1.15
    assert np.median(beside) < 0.9
    assert np.std(behind) > 2 * np.std(beside)


def test_bias_field_is_smooth_and_strongest_with_the_coil_of_the_first_scanner():
    flat = np.full((32, 64, 64), 0.5)
    spread = []
    for scanner in range(len(LAWS)):
        image = _scan(flat, scanner, np.random.default_rng(1))
        smooth = ndimage.uniform_filter(image, 9)[5:-5, 5:-5, 5:-5]
        spread.append(np.std(smooth) / np.mean(smooth - LAWS[scanner][1]))
    assert min(spread) > 0.04
    assert spread[0] > 1.5 * spread[1]


def test_prepared_phantoms():
    cases = phantoms(0, 3, (32, 32, 16), (4, 4, 6))
    assert [case.name for case in cases] == ["phantom00", "phantom01", "phantom02"]
    assert all(case.labels == (0, 1) for case in cases)
    assert not np.array_equal(cases[0].mask, phantoms(1, 1, (32, 32, 16), (4, 4, 6))[0].mask)
