import math

import numpy as np
import pytest
from scipy import ndimage

from vnet_fast.metrics import dice, dice_per_class, hausdorff_distance


def blob(seed, shape=(14, 17, 19)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.9)


def test_dice_by_counting():
    a, b = np.zeros((2, 4, 4, 4), bool)
    a[:2], b[1:3] = True, True
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a, a & False) == 0
    assert dice(a & False, a & False) == 1


def test_dice_per_class():
    a, b = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    assert dice_per_class(a, b, 4) == [pytest.approx(2 / 3), pytest.approx(2 / 3), 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.7, 3.0)])
def test_hausdorff_against_distance_transforms(seed, spacing):
    a, b = blob(seed), blob(seed + 100)
    sampling = spacing[::-1]
    to_a, to_b = (ndimage.distance_transform_edt(~mask, sampling=sampling) for mask in (a, b))
    expected = max(to_a[b].max(), to_b[a].max())
    assert hausdorff_distance(a, b, spacing) == pytest.approx(expected, abs=1e-5)


def test_hausdorff_in_closed_form():
    a, b = np.zeros((2, 10, 20, 20), bool)
    a[2:5, 3:8, 3:8], b[2:5, 3:8, 7:12] = True, True
    assert hausdorff_distance(a, b, (0.6, 1, 3)) == pytest.approx(4 * 0.6)
    assert hausdorff_distance(a, a, (0.6, 1, 3)) == 0


def test_hausdorff_of_empty_masks():
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    assert hausdorff_distance(empty, empty, (1, 1, 1)) == 0
    assert hausdorff_distance(full, empty, (1, 1, 1)) == math.inf
    assert hausdorff_distance(empty, full, (1, 1, 1)) == math.inf
