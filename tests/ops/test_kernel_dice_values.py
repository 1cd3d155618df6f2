"""The fused Dice kernels where values are extreme, undefined, ignored or of another type."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.dice_checks import (
    LAYOUTS,
    PAPER,
    TERMS,
    _poisoned_lanes,
    check,
    make_channels,
    make_labels,
    make_logits,
    name_of,
)
from tests.ops.kernels import DEVICE, MARKS, TYPES, surrounded
from vnet_fast.kernels import dice, dice_layouts

__all__ = ["_poisoned_lanes"]
pytestmark = MARKS


@pytest.mark.parametrize("ignore_index", [0, 2, 255, -1])
@pytest.mark.parametrize("dtype", dice_layouts.TARGET_TYPES, ids=name_of)
def test_ignored_labels(dtype, ignore_index):
    shape = (2, 3, 3, 5, 7)
    layout, terms = ("channels_last", "squared") if ignore_index > 0 else ("contiguous", "plain")
    squared, soft = TERMS[terms]
    options = PAPER._replace(squared=squared, soft=soft, ignore_index=ignore_index)
    check(make_logits(shape, torch.float32, layout), make_labels(shape, dtype, ignore_index), options)


@pytest.mark.parametrize("dtype", dice_layouts.TARGET_TYPES, ids=name_of)
def test_types_of_the_target(dtype):
    shape = (2, 3, 3, 5, 7)
    for layout in LAYOUTS:
        logits = make_logits(shape, torch.bfloat16, layout)
        check(logits, make_labels(shape, dtype), PAPER)
        check(logits, make_channels(shape, dtype, layout), PAPER._replace(labels=False))


def test_labels_of_many_bits():
    """A label is not its lower 32 bits: beyond the classes it is none of them."""
    logits = make_logits((2, 2, 3, 5, 7), torch.float32)
    target = make_labels(logits.shape, torch.int64)
    options = PAPER._replace(first_class=0)
    expected = dice.dice_sums(logits, torch.full_like(target, 5), options)
    assert (expected[[0, 2]] == 0).all()
    assert torch.equal(dice.dice_sums(logits, target + 2**32, options), expected)


def test_fractions_of_labels_are_cut_off():
    logits = make_logits((2, 3, 3, 5, 7), torch.float32)
    target = make_labels(logits.shape, torch.float32)
    check(logits, target + 0.75, PAPER._replace(ignore_index=1))


@pytest.mark.parametrize("label", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_no_foreground_and_nothing_else(dtype, layout, label):
    shape = (2, 2, 3, 5, 7)
    target = torch.full((2, 1, 3, 5, 7), label, dtype=torch.uint8, device=DEVICE)
    sums, _ = check(make_logits(shape, dtype, layout), target, PAPER)
    assert (sums[2] == label * 3 * 5 * 7).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_is_ignored(layout):
    shape = (2, 3, 3, 5, 7)
    target = torch.full((2, 1, 3, 5, 7), 255, dtype=torch.uint8, device=DEVICE)
    for result in check(make_logits(shape, torch.float32, layout), target, PAPER._replace(ignore_index=255)):
        assert (result == 0).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
@pytest.mark.parametrize("scale", [1e3, 1e30])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_extreme_logits(dtype, layout, activation, scale):
    shape = (2, 3, 3, 5, 7)
    logits = make_logits(shape, torch.float32, layout) * scale
    # float16 ends at 65504, and infinity has its own test
    logits = surrounded(logits.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else logits.to(dtype))
    check(logits, make_labels(shape), PAPER._replace(activation=activation))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
@pytest.mark.parametrize(
    ("activation", "value"),
    # without an activation the sums would be infinite, and have no error to compare
    [("none", torch.nan), *itertools.product(("softmax", "sigmoid"), (torch.nan, torch.inf, -torch.inf))],
)
@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity(layout, classes, activation, value):
    """They go where the definition has them, also from a voxel or a class that does not count."""
    shape = (2, classes, 3, 5, 7)
    target = make_labels(shape, ignore_index=255)
    ignored, counts = (where.nonzero()[0].tolist() for where in (target[0, 0] == 255, target[0, 0] != 255))
    for (z, y, x), channel, terms in [(ignored, 1, "plain"), (counts, 0, "squared"), (counts, 1, "soft")]:
        logits = make_logits(shape, torch.float32, layout)
        logits[0, channel, z, y, x] = value
        squared, soft = TERMS[terms]
        options = PAPER._replace(activation=activation, squared=squared, soft=soft, ignore_index=255)
        sums, _ = check(logits, target, options)
        assert not sums[:, 1].isnan().any()
        if activation == "softmax" and value != -torch.inf:
            assert sums[:2, 0].isnan().all()
