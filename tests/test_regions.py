"""Regions of labels: their texts, and how they are written into a mask."""

import numpy as np
import pytest

from vnet_fast.errors import InputError
from vnet_fast.regions import (
    Region,
    ambiguities,
    label_table,
    parse_regions,
    possible_labels,
    stored_regions,
    written_names,
)

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
def test_a_voxel_has_a_label_that_is_in_just_its_regions(regions):
    table = label_table(regions)
    for inside, label in (((WHOLE,), 2), ((WHOLE, CORE), 1), ((WHOLE, CORE, ACTIVE), 4), ((), 0)):
        assert table[sum(1 << regions.index(region) for region in inside)] == label
    # what no label is in is the nearest: the core is a part of the whole
    assert table[1 << regions.index(CORE)] == 1
    assert table[1 << regions.index(ACTIVE)] == 4
    assert ambiguities(regions) == []
    assert written_names(regions) == {2: "whole", 1: "core", 4: "active"}


SETS = {
    "nested": (CORE, WHOLE, ACTIVE),
    "overlapping": (Region("a", (1, 2)), Region("b", (2, 3))),
    "covered": (Region("all", (2, 5)), Region("a", (2,)), Region("b", (5,))),
    "apart": (Region("a", (7,)), Region("b", (1, 255))),
}


@pytest.mark.parametrize("name", SETS)
def test_regions_are_found_again_in_a_mask_that_is_written(name):
    regions = SETS[name]
    labels = sorted({0, *(label for region in regions for label in region.labels)})
    reference = np.random.default_rng(0).choice(np.array(labels, np.uint8), (6, 7, 8))
    codes = sum(region.of(reference).astype(int) << number for number, region in enumerate(regions))
    mask = label_table(regions)[codes]
    for region in regions:
        np.testing.assert_array_equal(region.of(mask), region.of(reference))


def test_a_region_without_a_label_of_its_own_is_said():
    assert ambiguities(SETS["covered"]) == ["where all alone is predicted, masks have label 2, which is a too"]
    assert ambiguities(SETS["overlapping"]) == ambiguities(SETS["apart"]) == []


def test_there_are_not_too_many():
    parse_regions([f"r{n}: {n + 1}" for n in range(12)])
    with pytest.raises(InputError, match="--regions: names 13 regions, more than 12"):
        parse_regions([f"r{n}: {n + 1}" for n in range(13)])


def test_of_a_checkpoint():
    assert stored_regions({}) == ()
    assert stored_regions({"regions": [{"name": "core", "labels": [1, 3, 4]}]}) == (CORE,)


@pytest.mark.parametrize("name", SETS)
def test_labels_that_outputs_can_lead_to(name):
    """All that a voxel in some regions may be written as, if any of them lose it to another component."""
    regions = SETS[name]
    table, possible = label_table(regions), possible_labels(regions)
    for inside in range(len(table)):
        codes = {part for part in range(len(table)) if part & inside == part}
        regions_of = [{tuple(table[code] in region.labels for region in regions)} for code in codes]
        for label in range(256):
            expected = any(tuple(label in region.labels for region in regions) in found for found in regions_of)
            assert possible[inside, label] == expected
