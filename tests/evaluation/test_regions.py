import math

import numpy as np
import pytest

from tests.volumes import make_image
from vnet_fast.evaluation.regions import REGIONS, regions

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)


def rotation(degrees, axis):
    """The matrix of a rotation about one of the axes x, y, z."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def slab(axis, first, count, shape=(24, 24, 24)):
    """A mask with `count` slices along an axis of the array."""
    mask = np.zeros(shape, bool)
    np.moveaxis(mask, axis, 0)[first : first + count, 4:20, 5:19] = True
    return mask


OBLIQUE = rotation(20, 0) @ rotation(15, 2) @ rotation(-10, 1)
# a direction matrix, whose columns are the image's x, y and z in the axes left, posterior and superior; the axis of
# the array that is closest to superior; and its sign
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
    boxes = regions(reference, flat)
    assert tuple(boxes) == REGIONS
    low, high = slice(5, 8), slice(11, 14)
    assert boxes["base"][axis] == (high if sign > 0 else low)
    assert boxes["apex"][axis] == (low if sign > 0 else high)
    for name in ("base", "apex"):
        assert [extent for index, extent in enumerate(boxes[name]) if index != axis] == [slice(None)] * 2

    # ITK agrees: in the patient's axes the base is above the apex
    image = make_image(reference.astype(np.uint8), (0.7, 0.8, 0.9), (3, -50, 20), flat)
    height = {}
    for name in ("base", "apex"):
        inside = np.zeros_like(reference)
        inside[boxes[name]] = reference[boxes[name]]
        centre = np.argwhere(inside).mean(axis=0)[::-1]
        height[name] = image.TransformContinuousIndexToPhysicalPoint(centre.tolist())[2]
    assert height["base"] > height["apex"] + 2


@pytest.mark.parametrize("count", range(1, 20))
def test_a_slice_is_in_a_third_if_its_centre_is(count):
    boxes = regions(slab(0, 3, count), IDENTITY)
    from_the_cranial_end = [3 + count - 1 - i for i in range(count) if i + 0.5 < count / 3]
    from_the_caudal_end = [3 + i for i in range(count) if i + 0.5 < count / 3]
    slices = np.arange(24)
    assert slices[boxes["base"][0]].tolist() == sorted(from_the_cranial_end)
    assert slices[boxes["apex"][0]].tolist() == from_the_caudal_end


def test_slices_without_reference_between_others_count():
    reference = slab(0, 3, 9)
    reference[4:11] = False
    boxes = regions(reference, IDENTITY)
    assert (boxes["apex"][0], boxes["base"][0]) == (slice(3, 6), slice(9, 12))


def test_whole_is_everything():
    reference = slab(0, 3, 9)
    assert reference[regions(reference, IDENTITY)["whole"]].shape == reference.shape


def test_an_empty_reference_has_no_base_and_apex():
    reference = np.zeros((4, 5, 6), bool)
    boxes = regions(reference, IDENTITY)
    assert reference[boxes["whole"]].shape == (4, 5, 6)
    assert reference[boxes["base"]].size == reference[boxes["apex"]].size == 0


def test_reference_at_the_ends_of_the_volume():
    boxes = regions(np.ones((6, 4, 4), bool), IDENTITY)
    assert (boxes["apex"][0], boxes["base"][0]) == (slice(0, 2), slice(4, 6))


def test_a_direction_of_a_plane():
    with pytest.raises(ValueError, match="direction must be 9 numbers, row by row; got 4"):
        regions(np.ones((2, 2, 2), bool), (1, 0, 0, 1))
