"""Regions of labels: their texts, and how they are written into a mask."""

import numpy as np
import pytest

from vnet_fast.errors import InputError
from vnet_fast.regions import Region, parse_regions, stored_regions, writing_order, written_names

WHOLE, CORE, ACTIVE = Region("whole", (1, 2, 3, 4)), Region("core", (1, 3, 4)), Region("active", (4,))


def test_texts():
    assert parse_regions(["whole: 4 1 2 3", "core:1,3, 4"]) == (WHOLE, CORE)
    assert parse_regions(["a: b: 7"]) == (Region("a: b", (7,)),)
    assert parse_regions([]) == ()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["whole"], "must be names with labels; got 'whole'"),
        (["1 2"], "must be names with labels"),
        ([": 1"], "must be names with labels"),
        (["whole:"], "must be names with labels"),
        (["whole: 1 x"], "must have labels from 1 to 255; got 'whole: 1 x'"),
        (["whole: 1 -2"], "must have labels from 1 to 255"),
        (["whole: 1 9999999999"], "must have labels from 1 to 255"),
        (["whole: 0 1"], "whole must have labels from 1 to 255"),
        (["whole: 1 256"], "whole must have labels from 1 to 255"),
        (["a: 1", "a: 2"], "names a twice"),
        (["a: 1 2", "b: 2 1"], "b has the same labels as a"),
    ],
)
def test_texts_that_are_none(texts, message):
    with pytest.raises(InputError, match=message):
        parse_regions(texts)


@pytest.mark.parametrize("regions", [(WHOLE, CORE, ACTIVE), (ACTIVE, WHOLE, CORE)])
def test_smaller_regions_are_written_over_larger_ones(regions):
    written = [(regions[number].name, label) for number, label in writing_order(regions)]
    assert written == [("whole", 2), ("core", 1), ("active", 4)]
    assert written_names(regions) == {2: "whole", 1: "core", 4: "active"}


def test_regions_are_found_again_in_a_mask_that_is_written():
    generator = np.random.default_rng(0)
    reference = generator.integers(0, 5, (6, 7, 8)).astype(np.uint8)
    regions, mask = (CORE, WHOLE, ACTIVE), np.zeros(reference.shape, np.uint8)
    for number, label in writing_order(regions):
        mask[regions[number].of(reference)] = label
    for region in regions:
        np.testing.assert_array_equal(region.of(mask), region.of(reference))


def test_a_region_that_others_make_up_has_its_lowest_label():
    assert writing_order((Region("all", (2, 5)), Region("a", (2,)), Region("b", (5,)))) == [(0, 2), (1, 2), (2, 5)]


def test_of_a_checkpoint():
    assert stored_regions({}) == ()
    assert stored_regions({"regions": [{"name": "core", "labels": [1, 3, 4]}]}) == (CORE,)
