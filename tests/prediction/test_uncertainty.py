import math

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image
from vnet_fast.io.grid import Grid
from vnet_fast.prediction.uncertainty import entropy_on_grid


def entropy_of(probabilities, regions=False, slabs=None, spacing=(1, 1, 1)):
    """The entropy of probabilities (K, z, y, x), on their own grid unless it has another spacing."""
    images = [make_image(p.astype(np.float32)) for p in probabilities]
    grid = Grid.of(make_image(np.zeros(probabilities[0].shape, np.uint8), spacing))
    return entropy_on_grid(images, grid, slabs or [(0, grid.shape[0])], regions)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_certain_and_uncertain(classes):
    equal = np.full((classes, 2, 3, 4), 1 / classes)
    np.testing.assert_allclose(entropy_of(equal), math.log(classes), rtol=1e-6)
    certain = np.zeros((classes, 2, 3, 4))
    certain[1] = 1
    assert not entropy_of(certain).any()


def test_regions_are_there_or_not():
    p = np.array([0.5, 0.9])[:, None, None, None] * np.ones((2, 2, 2, 2))
    binary = [-(q * math.log(q) + (1 - q) * math.log(1 - q)) for q in (0.5, 0.9)]
    np.testing.assert_allclose(entropy_of(p, regions=True), np.mean(binary), rtol=1e-6)
    for certain in (0.0, 1.0):
        assert not entropy_of(np.full((2, 2, 2, 2), certain), regions=True).any()


def test_slabs_give_the_whole():
    generator = np.random.default_rng(0)
    p = generator.random((3, 7, 5, 4)) + 0.01
    p /= p.sum(0)
    whole = entropy_of(p)
    np.testing.assert_array_equal(entropy_of(p, slabs=[(0, 3), (3, 4), (4, 7)]), whole)
    np.testing.assert_allclose(whole, -(p * np.log(p)).sum(0), rtol=1e-5)


def test_beyond_the_networks_grid_the_background_is_certain():
    """There all probabilities are 0 but the background's, and of regions all are."""
    p = np.full((2, 4, 4, 4), 0.5)
    for regions in (False, True):
        entropy = entropy_of(p, regions, spacing=(2, 1, 1))
        assert (entropy[..., :2] > 0.6).all()
        assert not entropy[..., 2:].any()
        assert not np.signbit(entropy).any()


def test_rounding_beyond_one_is_no_negative_entropy():
    image = make_image(np.full((2, 2, 2), np.nextafter(np.float32(1), np.float32(2)), np.float32))
    other = make_image(np.zeros((2, 2, 2), np.float32))
    for regions in (False, True):
        entropy = entropy_on_grid([image, other], Grid.of(image), [(0, 2)], regions)
        assert np.isfinite(entropy).all()
        assert (entropy >= 0).all()
    assert image.GetPixelID() == sitk.sitkFloat32
