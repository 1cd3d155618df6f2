"""Where patches lie, and the batches that are made of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_batches import CPU, DEVICES, EVERYTHING, made
from vnet_fast.data.phantom import phantoms
from vnet_fast.data.preparation import IGNORED, prepare
from vnet_fast.data.training_data import Data
from vnet_fast.errors import InputError
from vnet_fast.training.batches import make_source
from vnet_fast.training.draws import PAPER, BatchSampler
from vnet_fast.training.patches import FOREGROUND_EVERY, MAX_MIDDLES, Middles
from vnet_fast.training.sources import Ready, Resident, Streamed
from vnet_fast.training.volumes import SeparateVolumes, WholeVolumes
from vnet_fast.training.workers import FromWorkers

PATCH = (8, 16, 16)
SIZES = [(24, 16, 10), (20, 30, 12), (16, 16, 8), (31, 17, 9)]


@pytest.fixture(scope="module")
def whole():
    """Cases of different sizes, of which the third is no larger than a patch."""
    return [phantoms(seed, 1, size, (4, 4, 6))[0] for seed, size in enumerate(SIZES)]


def sampler(whole, batch_size=2, augmented=True, augmentation=PAPER, **parts):
    middles = Middles.of(whole, 2)
    return BatchSampler(
        0, batch_size, len(whole), PATCH, augmented, augmentation=augmentation, spacing=(4, 4, 6), middles=middles,
        **parts,
    )  # fmt: skip


def labelled(shape, *boxes):
    """A case with a box of each label, 1 and up."""
    mask = np.zeros(shape, np.uint8)
    for label, box in enumerate(boxes, start=1):
        mask[box] = label
    return prepare("A", np.random.default_rng(0).normal(size=shape), mask, range(len(boxes) + 1))


def origins_of(case, number, shape, num_classes, seed=0):
    middles = Middles.of([case], num_classes)
    generator = np.random.default_rng(seed)
    return middles.origins(generator, np.zeros(number, np.int64), np.arange(number), shape)


def test_every_third_patch_has_foreground_and_the_others_lie_anywhere():
    case = labelled((20, 22, 24), (slice(1, 3), slice(2, 4), slice(20, 22)), (slice(18, 20), slice(0, 2), slice(5, 9)))
    shape = (6, 7, 8)
    origins = origins_of(case, 900, shape, 3)
    assert (origins >= 0).all()
    assert (origins <= np.array(case.mask.shape) - shape).all()
    parts = [case.mask[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))] for origin in origins]
    chosen = parts[FOREGROUND_EVERY - 1 :: FOREGROUND_EVERY]
    assert all(part.any() for part in chosen)
    # each class as often, although one has twice as many voxels
    assert 0.4 < np.mean([(part == 2).any() for part in chosen]) < 0.6
    others = np.delete(origins, np.s_[FOREGROUND_EVERY - 1 :: FOREGROUND_EVERY], axis=0)
    for axis, room in enumerate(np.array(case.mask.shape) - shape):
        counts = np.bincount(others[:, axis], minlength=room + 1)
        assert len(counts) == room + 1
        assert counts.min() > 0.4 * counts.mean()


def test_a_structure_is_in_the_middle_where_there_is_room():
    case = labelled((30, 30, 30), (slice(15, 16), slice(14, 15), slice(13, 14)))
    origin = origins_of(case, FOREGROUND_EVERY, (10, 8, 6), 2)[-1]
    assert origin.tolist() == [10, 10, 10]


def test_a_volume_without_structures_and_one_of_the_patches_size():
    empty = labelled((9, 9, 9))
    assert len(np.unique(origins_of(empty, 60, (4, 4, 4), 2), axis=0)) > 20
    full = labelled((4, 5, 6), (slice(0, 1),) * 3)
    assert not origins_of(full, 9, (4, 5, 6), 2).any()


def test_few_voxels_of_a_large_structure_are_kept_and_always_the_same():
    case = labelled((30, 40, 50), (slice(0, 20),) * 3, (slice(20, 25),) * 3)
    first, second = Middles.of([case], 3), Middles.of([case], 3)
    assert [len(voxels) for voxels in first.of_classes[0]] == [8000, 125]
    large = labelled((30, 40, 50), (slice(0, 30), slice(0, 30), slice(0, 30)))
    assert len(Middles.of([large], 2).of_classes[0][0]) == MAX_MIDDLES
    assert all(np.array_equal(*pair) for pair in zip(first.of_classes[0], second.of_classes[0], strict=True))
    # with two classes all labels are one
    assert [len(voxels) for voxels in Middles.of([case], 2).of_classes[0]] == [8125]


def test_batches_without_augmentation_are_crops(whole):
    drawn = sampler(whole, augmented=False)
    source = Resident(WholeVolumes(whole, 2, PATCH), drawn, CPU)
    for iteration in range(6):
        image, mask = made(source, iteration)
        batch = drawn(iteration)
        assert image.shape == mask.shape == (2, 1, *PATCH)
        for n, case in enumerate(batch.cases):
            x, y, z = batch.transforms[n, 3:12:4].astype(int)
            part = slice(z, z + PATCH[0]), slice(y, y + PATCH[1]), slice(x, x + PATCH[2])
            np.testing.assert_array_equal(image[n, 0].numpy(), whole[case].image[part])
            np.testing.assert_array_equal(mask[n, 0].numpy(), whole[case].mask[part])


def test_parts_of_a_batch_are_those_of_the_whole_one(whole):
    all_of_it = sampler(whole, 4, augmentation=EVERYTHING)(5)
    parts = [sampler(whole, 2, augmentation=EVERYTHING, part=part, parts=2)(5) for part in range(2)]
    for name in ("cases", "transforms", "control_points"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(all_of_it, name))


def test_patches_change_no_other_draw(whole):
    with_patches = sampler(whole, augmentation=EVERYTHING)
    without = replace(with_patches, middles=None)
    ours, theirs = with_patches(3), without(3)
    for name in ("cases", "intensities_of", "deformed", "control_points"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    # the linear part of M, and all that concerns intensities
    columns = [n for n in range(12) if n % 4 != 3] + list(range(16, 23))
    np.testing.assert_array_equal(ours.transforms[:, columns], theirs.transforms[:, columns])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("batch_size", "augmentation"), [(1, PAPER), (3, EVERYTHING)])
def test_streamed_patches_are_the_resident_ones(whole, device, batch_size, augmentation):
    drawn = sampler(whole, batch_size, augmentation=augmentation)
    resident, streamed = (kind(WholeVolumes(whole, 2, PATCH), drawn, device) for kind in (Resident, Streamed))
    shapes = set()
    for iteration in (0, 1, 2, 3, 9, 10, 4):
        shapes.add(tuple(tensor.shape for tensor in streamed.inputs(iteration)))
        for ours, expected in zip(made(streamed, iteration), made(resident, iteration), strict=True):
            assert torch.equal(ours, expected)
    # as a CUDA graph needs it
    assert len(shapes) == 1


@pytest.mark.exhaustive
def test_patches_made_ahead_are_those_made_in_the_step(whole):
    drawn = sampler(whole, augmentation=EVERYTHING)
    resident = make_source(Data(whole, [], 2, patches=True), drawn, CPU, torch.float32, range(5, 9))
    assert isinstance(resident, Resident)
    ahead, ready = FromWorkers(whole, 2, drawn, 5, 9, workers=1), Ready(resident)
    for iteration in range(5, 9):
        expected = made(resident, iteration)
        for source in (ahead, ready):
            for ours, theirs in zip(source.inputs(iteration), expected, strict=True):
                assert torch.equal(ours, theirs)
    ahead.close()


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("ignores", [False, True])
def test_volumes_that_stay_where_they_are_give_the_same_batches(num_classes, ignores):
    """Of several channels, binary or not, and with voxels that do not count."""
    generator, cases = np.random.default_rng(0), []
    for shape in ((9, 17, 18), (8, 16, 16), (12, 20, 16)):
        mask = generator.integers(0, 3, shape).astype(np.uint8)
        mask[:2] = IGNORED if ignores else 0
        cases.append(prepare("A", generator.normal(size=(2, *shape)), mask, [0, 1, 2]))
    middles = Middles.of(cases, num_classes)
    drawn = BatchSampler(0, 2, len(cases), PATCH, augmentation=EVERYTHING, middles=middles, channels=2, ignores=ignores)
    before = [case.mask.copy() for case in cases]
    together = Ready(Resident(WholeVolumes(cases, num_classes, PATCH, ignores), drawn, CPU))
    separate = SeparateVolumes(cases, num_classes, PATCH, ignores)
    apart = Ready(Streamed(separate, drawn, CPU))
    assert separate.nbytes == WholeVolumes(cases, num_classes, PATCH).nbytes
    labels = set()
    for iteration in range(4):
        (image, mask), (expected, wanted) = (source.inputs(iteration) for source in (apart, together))
        assert torch.equal(image, expected)
        assert torch.equal(mask, wanted)
        labels |= set(mask.unique().tolist())
    assert labels == set(range(num_classes + ignores))
    # what is on disk is not changed
    assert all(np.array_equal(case.mask, mask) for case, mask in zip(cases, before, strict=True))


def test_what_memory_does_not_hold_is_streamed(whole, monkeypatch):
    drawn, data = sampler(whole), Data(whole, [], 2, patches=True)
    source = make_source(data, drawn, CPU, torch.float32, range(0, 4))
    assert isinstance(source, Resident)
    expected = source.prepare(*source.inputs(0))
    monkeypatch.setattr("vnet_fast.training.batches.memory_of", lambda device: 4 * 1000)
    source = make_source(data, drawn, CPU, torch.float32, range(0, 4))
    assert isinstance(source, Streamed)
    assert source.description.endswith("streamed from the cache")
    for ours, theirs in zip(source.prepare(*source.inputs(0)), expected, strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match="--workers: each of 2 holds all volumes"):
        make_source(data, drawn, CPU, torch.float32, range(0, 4), workers=2)
