import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from vnet_fast.evaluation.surfaces import boundary_distances

SPACINGS = {
    "isotropic": (1, 1, 1),
    "thick": (0.5, 0.5, 3.0),
    "few digits": (0.5, 0.7, 3.0),
    "many digits": (0.48828125, 0.48828125, 3.3000011),
    "all differ, many digits": (0.31234, 0.712345, 3.1412),
    "float32": tuple(float(np.float32(s)) for s in (0.6, 0.6, 3.3)),
}
PARAMETERS = pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)


def blob(seed, shape=(14, 17, 19)):
    """A mask of several pieces with holes, some at the volume's border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.8)


def scipy_distances(a, b, spacing):
    """From each boundary voxel of a to b's boundary, by an erosion and a distance transform of the whole volume."""
    edge_a, edge_b = (mask & ~ndimage.binary_erosion(mask) for mask in (a, b))
    return ndimage.distance_transform_edt(~edge_b, sampling=spacing[::-1])[edge_a]


@pytest.mark.parametrize("seed", range(4))
@PARAMETERS
def test_against_scipy(seed, spacing):
    a, b = blob(seed), blob(seed + 100)
    for found, expected in zip(
        boundary_distances(a, b, spacing),
        (scipy_distances(a, b, spacing), scipy_distances(b, a, spacing)),
        strict=True,
    ):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "limit"),
    [
        ((0.8, 0.9, 2.5), 1e-5),
        ((0.95892, 0.95892, 2.64878), 1e-5),
        # the extent is 250 mm, of which 1e-7 is promised
        ((0.812345, 0.981212, 2.91331), 2.5e-5),
    ],
    ids=["few digits", "two alike", "all differ, many digits"],
)
def test_far_apart(spacing, limit):
    """Rounding hardly grows with the volume: places in float32 and mm would be off by 2e-5 mm or more."""
    generator = np.random.default_rng(0)
    a, b = np.zeros((2, 40, 256, 256), bool)
    for mask, count in ((a, 20000), (b, 20)):
        mask[tuple(generator.integers(0, n, count) for n in mask.shape)] = True
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    places = [np.argwhere(edge) * np.array(spacing[::-1]) for edge in edges]
    expected = KDTree(places[1]).query(places[0])[0]
    near = expected < 100
    assert near.sum() > 10000
    assert expected[near].max() > 80
    np.testing.assert_allclose(boundary_distances(a, b, spacing)[0][near], expected[near], rtol=0, atol=limit)


@PARAMETERS
def test_of_a_mask_from_itself(spacing):
    mask = blob(7)
    for found in boundary_distances(mask, mask, spacing):
        assert not found.any()
        assert found.size == (mask & ~ndimage.binary_erosion(mask)).sum()


def test_of_one_voxel_in_a_corner():
    a, b = np.zeros((2, 5, 6, 7), bool)
    a[0, 0, 0] = b[4, 5, 6] = True
    expected = np.linalg.norm([6 * 0.5, 5 * 0.7, 4 * 3])
    for found in boundary_distances(a, b, (0.5, 0.7, 3)):
        assert found == pytest.approx([expected], abs=1e-6)


def test_beyond_the_border_is_outside():
    """The full volume has a boundary: its shell, of which the voxel in its middle is a voxel away."""
    full, middle = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    middle[1, 1, 1] = True
    ours, theirs = boundary_distances(full, middle, (0.5, 0.7, 3))
    assert ours.size == 26
    assert theirs == pytest.approx([0.5])


def test_a_corner_is_no_face():
    """A voxel is inside if it has all its face neighbours, whatever is at its edges and corners."""
    cross, other = np.zeros((2, 5, 5, 5), bool)
    cross[1:4, 2, 2] = cross[2, 1:4, 2] = cross[2, 2, 1:4] = True
    other[2, 2, 2] = True
    ours, theirs = boundary_distances(cross, other, (1, 2, 3))
    assert sorted(ours.tolist()) == pytest.approx([1, 1, 2, 2, 3, 3])
    assert theirs == pytest.approx([1])


def test_inputs_stay():
    a, b = blob(0), blob(1)
    before = a.copy(), b.copy()
    boundary_distances(a[::-1], b, (1, 1, 2))
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])
