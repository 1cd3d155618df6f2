import numpy as np
import pytest
from scipy import ndimage

from vnet_fast.evaluation.surfaces import boundary_distances

SPACINGS = {
    "isotropic": (1, 1, 1),
    "thick": (0.5, 0.5, 3.0),
    "few digits": (0.5, 0.7, 3.0),
    "many digits": (0.48828125, 0.48828125, 3.3000011),
    "all differ, many digits": (0.31234, 0.712345, 3.1412),
    "float32": tuple(float(np.float32(step)) for step in (0.6, 0.6, 3.3)),
}
PARAMETERS = pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
# mm; the sums of both computations are rounded in float64
TOLERANCE = 1e-9


def blob(seed, shape=(14, 17, 19)):
    """A mask of several pieces with holes, some at the volume's border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.8)


def find_boundary(mask):
    return mask & ~ndimage.binary_erosion(mask)


def distances_by_map(a, b, spacing):
    """From each boundary voxel of a to b's boundary, by a distance map of the whole volume."""
    return ndimage.distance_transform_edt(~find_boundary(b), sampling=spacing[::-1])[find_boundary(a)]


def check_against_map(a, b, spacing):
    there, back = boundary_distances(a, b, spacing)
    assert there.dtype == back.dtype == np.float64
    np.testing.assert_allclose(there, distances_by_map(a, b, spacing), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(back, distances_by_map(b, a, spacing), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
@PARAMETERS
def test_against_a_distance_map(seed, spacing):
    check_against_map(blob(seed), blob(seed + 100), spacing)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(200))
def test_random_masks_against_a_distance_map(seed):
    """Any shape, spacing and density, from a single voxel to a full volume."""
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 40, 3))
    a, b = (generator.random(shape) < 10 ** generator.uniform(-3, 0.1) for _ in range(2))
    a.flat[0] = b.flat[-1] = True
    check_against_map(a, b, tuple(10 ** generator.uniform(-1, 1, 3)))


@pytest.mark.parametrize(
    "spacing",
    [(0.8, 0.9, 2.5), (0.95892, 0.95892, 2.64878), (0.812345, 0.981212, 2.91331)],
    ids=["few digits", "two alike", "all differ, many digits"],
)
def test_large_distances(spacing):
    """Positions in float32 would be off by 2e-5 mm or more."""
    generator = np.random.default_rng(0)
    a, b = np.zeros((2, 40, 200, 200), bool)
    for mask, count in ((a, 20000), (b, 5)):
        mask[tuple(generator.integers(0, n, count) for n in mask.shape)] = True
    assert distances_by_map(a, b, spacing).max() > 80
    check_against_map(a, b, spacing)


@pytest.mark.parametrize("name", ["Case00", "Case25"])
def test_real_masks_against_a_distance_map(real_data, name):
    """A prostate, and the same prostate with a region cut off and another one added."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(real_data / "promise12" / f"{name}_segmentation.mhd"))
    reference = sitk.GetArrayFromImage(image) > 0
    prediction = np.roll(reference, (1, -3, 2), (0, 1, 2)) & (np.arange(reference.shape[2]) < 70)
    prediction[2:4, 5:9, 5:12] = True
    check_against_map(prediction, reference, image.GetSpacing())


@PARAMETERS
def test_of_a_mask_from_itself(spacing):
    mask = blob(7)
    for distances in boundary_distances(mask, mask, spacing):
        assert not distances.any()
        assert distances.size == find_boundary(mask).sum()


def test_of_one_voxel_in_a_corner():
    a, b = np.zeros((2, 5, 6, 7), bool)
    a[0, 0, 0] = b[4, 5, 6] = True
    expected = np.linalg.norm([6 * 0.5, 5 * 0.7, 4 * 3])
    for distances in boundary_distances(a, b, (0.5, 0.7, 3)):
        assert distances == pytest.approx([expected], abs=TOLERANCE)


def test_beyond_the_border_is_outside():
    """The boundary of a full volume is its outer shell; the voxel in the middle is one voxel away from it."""
    full, middle = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    middle[1, 1, 1] = True
    of_full, of_middle = boundary_distances(full, middle, (0.5, 0.7, 3))
    assert of_full.size == 26
    assert of_middle == pytest.approx([0.5])


def test_edges_and_corners_do_not_make_a_boundary():
    """A voxel whose face neighbours are all in the mask is inside, whatever touches its edges and corners."""
    cross, other = np.zeros((2, 5, 5, 5), bool)
    cross[1:4, 2, 2] = cross[2, 1:4, 2] = cross[2, 2, 1:4] = True
    other[2, 2, 2] = True
    of_cross, of_other = boundary_distances(cross, other, (1, 2, 3))
    assert sorted(of_cross.tolist()) == pytest.approx([1, 1, 2, 2, 3, 3])
    assert of_other == pytest.approx([1])


def test_inputs_are_not_changed():
    a, b = blob(0), blob(1)
    before = a.copy(), b.copy()
    boundary_distances(a[::-1], b, (1, 1, 2))
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])
