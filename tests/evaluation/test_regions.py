import math

import numpy as np
import pytest

from tests.volumes import make_image
from vnet_fast.evaluation.regions import REGIONS, regions

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def rotation(degrees, axis):
    """About one of x, y, z; row by row."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = [each for each in range(3) if each != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def slab(axis, first, count, shape=(24, 24, 24)):
    """A mask with `count` slices along an axis of the array."""
    mask = np.zeros(shape, bool)
    np.moveaxis(mask, axis, 0)[first : first + count, 4:20, 5:19] = True
    return mask


OBLIQUE = rotation(20, 0) @ rotation(15, 2) @ rotation(-10, 1)
# the columns are where x, y, z of the image point in left, posterior, superior; and which axis of the array is
# superior, with its sign
DIRECTIONS = {
    "axial": (np.eye(3), 0, 1),
    "axial, feet last": (np.diag([1, -1, -1]), 0, -1),
    "axial, oblique": (OBLIQUE, 0, 1),
    "axial, oblique, feet last": (OBLIQUE @ np.diag([1, -1, -1]), 0, -1),
    "coronal, y to the feet": (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), 1, -1),
    "sagittal, x to the head": (np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]), 2, 1),
    "sagittal, oblique": (OBLIQUE @ np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]), 1, -1),
}


@pytest.mark.parametrize(("direction", "axis", "sign"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_base_is_cranial(direction, axis, sign):
    flat = direction.ravel().tolist()
    reference = slab(axis, 5, 9)
    found = regions(reference, flat)
    assert tuple(found) == REGIONS
    low, high = slice(5, 8), slice(11, 14)
    assert found["base"][axis] == (high if sign > 0 else low)
    assert found["apex"][axis] == (low if sign > 0 else high)
    for name in ("base", "apex"):
        assert [part for each, part in enumerate(found[name]) if each != axis] == [slice(None)] * 2

    # the same of ITK: along the patient's axis the base lies above the apex
    image = make_image(reference.astype(np.uint8), (0.7, 0.8, 0.9), (3, -50, 20), flat)
    height = {}
    for name in ("base", "apex"):
        inside = np.zeros_like(reference)
        inside[found[name]] = reference[found[name]]
        centre = np.argwhere(inside).mean(axis=0)[::-1]
        height[name] = image.TransformContinuousIndexToPhysicalPoint(centre.tolist())[2]
    assert height["base"] > height["apex"] + 2


@pytest.mark.parametrize("count", range(1, 20))
def test_a_slice_is_in_a_third_if_its_centre_is(count):
    found = regions(slab(0, 3, count), IDENTITY)
    from_the_cranial_end = [3 + count - 1 - i for i in range(count) if i + 0.5 < count / 3]
    from_the_caudal_end = [3 + i for i in range(count) if i + 0.5 < count / 3]
    slices = np.arange(24)
    assert slices[found["base"][0]].tolist() == sorted(from_the_cranial_end)
    assert slices[found["apex"][0]].tolist() == from_the_caudal_end


def test_slices_without_reference_between_others_count():
    reference = slab(0, 3, 9)
    reference[4:11] = False
    found = regions(reference, IDENTITY)
    assert (found["apex"][0], found["base"][0]) == (slice(3, 6), slice(9, 12))


def test_whole_is_everything():
    reference = slab(0, 3, 9)
    assert reference[regions(reference, IDENTITY)["whole"]].shape == reference.shape


def test_an_empty_reference_has_no_base_and_apex():
    reference = np.zeros((4, 5, 6), bool)
    found = regions(reference, IDENTITY)
    assert reference[found["whole"]].shape == (4, 5, 6)
    assert reference[found["base"]].size == reference[found["apex"]].size == 0


def test_reference_at_the_ends_of_the_volume():
    found = regions(np.ones((6, 4, 4), bool), IDENTITY)
    assert (found["apex"][0], found["base"][0]) == (slice(0, 2), slice(4, 6))


def test_a_direction_of_a_plane():
    with pytest.raises(ValueError, match="direction must be 9 numbers, row by row; got 4"):
        regions(np.ones((2, 2, 2), bool), (1, 0, 0, 1))
