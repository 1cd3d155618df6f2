from dataclasses import replace

import numpy as np
import pytest
import torch

from vnet_fast.data.phantom import phantoms
from vnet_fast.data.training_data import Data
from vnet_fast.ops.transform_rows import NOISE
from vnet_fast.run.augmentation import Augmentation
from vnet_fast.training import batches
from vnet_fast.training.batches import make_source
from vnet_fast.training.draws import PAPER, BatchSampler, sample_batch
from vnet_fast.training.sources import Ready, Resident, Streamed
from vnet_fast.training.volumes import Volumes
from vnet_fast.training.workers import FromWorkers

SHAPE = (16, 32, 32)
CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def prepared():
    return phantoms(0, 4, (32, 32, 16), (4, 4, 6))


EVERYTHING = Augmentation(
    deformation=0.5, matching=0.5, rotation=(1, 30, 10), scaling=(1, 0.8, 1.25), flip="x", brightness=(1, 0.75, 1.25),
    contrast=(1, 0.75, 1.25), gamma=(1, 0.7, 1.5), noise=(1, 0.3), low_resolution=(0.5, 2),
)  # fmt: skip


def sampler(batch_size=2, augmented=True, augmentation=PAPER):
    return BatchSampler(0, batch_size, 4, SHAPE, augmented, augmentation=augmentation, spacing=(4, 4, 6))


def made(source, iteration):
    inputs = source.inputs(iteration)
    return source.prepare(*inputs) if source.prepare else inputs


def test_batches_are_the_cases(prepared):
    source = Resident(Volumes(prepared, 2), sampler(augmented=False), CPU)
    image, mask = made(source, 3)
    assert image.shape == mask.shape == (2, 1, *SHAPE)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
    for n, case in enumerate(sample_batch(0, 3, 2, 4, SHAPE).cases):
        np.testing.assert_array_equal(image[n, 0].numpy(), prepared[case].image)
        np.testing.assert_array_equal(mask[n, 0].numpy(), prepared[case].mask)
    assert max(case.ranks.max() for case in prepared) > 60_000


def test_augmented_batches_take_other_intensities(prepared):
    image, _ = made(Resident(Volumes(prepared, 2), sampler(), CPU), 0)
    choice = sample_batch(0, 0, 2, 4, SHAPE)
    for n in range(2):
        table = prepared[choice.intensities_of[n]].table
        assert image[n].min() >= table.min()
        assert image[n].max() <= table.max()


def test_transforms_change_what_the_paper_does_not(prepared):
    for setting in ({"rotation": (1, 30, 10)}, {"noise": (1, 0.3)}):
        drawn = sampler(augmentation=Augmentation(deformation=0.0, matching=0.0, **setting))
        image, mask = made(Resident(Volumes(prepared, 2), drawn, CPU), 3)
        batch = drawn(3)
        for n, case in enumerate(batch.cases):
            change = (image[n, 0] - torch.from_numpy(prepared[case].image)).std().item()
            assert np.array_equal(mask[n, 0].numpy(), prepared[case].mask) == ("noise" in setting)
            if "noise" in setting:
                assert change == pytest.approx(batch.transforms[n, NOISE], rel=0.05)
            else:
                assert change > 0.2


def test_two_classes_take_all_labels_as_one(prepared):
    labelled = [replace(case, mask=case.mask * 3) for case in prepared]
    assert Volumes(labelled, 2).masks.max() == 1
    assert Volumes(labelled, 4).masks.max() == 3
    assert labelled[0].mask.max() == 3


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("batch_size", "augmentation"), [(1, PAPER), (3, PAPER), (2, EVERYTHING)])
def test_streamed_batches_are_the_resident_ones(prepared, device, batch_size, augmentation):
    drawn = sampler(batch_size, augmentation=augmentation)
    resident, streamed = (kind(Volumes(prepared, 2), drawn, device) for kind in (Resident, Streamed))
    # in order, as training asks for them, and not, as a run that is resumed
    for iteration in (0, 1, 2, 3, 9, 10, 4):
        for ours, expected in zip(made(streamed, iteration), made(resident, iteration), strict=True):
            assert torch.equal(ours, expected)


def test_batches_made_ahead_are_those_made_in_the_step(prepared):
    drawn = sampler(augmentation=EVERYTHING)
    resident = Resident(Volumes(prepared, 2), drawn, CPU)
    ahead, ready = FromWorkers(prepared, 2, drawn, 5, 9, workers=2), Ready(resident)
    assert ahead.prepare is None
    for iteration in range(5, 9):
        expected = made(resident, iteration)
        for source in (ahead, ready):
            for ours, theirs in zip(source.inputs(iteration), expected, strict=True):
                assert torch.equal(ours, theirs)
    ahead.close()


def test_workers_go_in_order(prepared):
    source = FromWorkers(prepared, 2, sampler(), 5, 9, workers=1)
    with pytest.raises(ValueError, match="iteration must be 5, the next in order; got 6"):
        source.inputs(6)
    source.close()


def test_source_of_a_cpu(prepared):
    source = make_source(Data(prepared, [], 2), sampler(), CPU, torch.float32, range(9))
    assert isinstance(source, Resident)
    assert source.description == f"4 volumes, {Volumes(prepared, 2).nbytes / 1e6:.0f} MB in memory"
    source = make_source(Data(prepared, [], 2), sampler(), CPU, torch.float32, range(9), workers=1)
    assert isinstance(source, FromWorkers)
    source.close()


class FakeDevice:
    """A CUDA device by name, whose tensors lie on the CPU."""

    type = "cuda"


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(("free", "kind"), [(5, Resident), (3, Streamed)])
def test_source_of_a_gpu_by_size(prepared, monkeypatch, free, kind, kernel):
    """Resident where the volumes take a quarter of the free memory at most, streamed beyond."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * Volumes(prepared, 2).nbytes, 0))
    transforms = free == 3
    asked = "transforms_by_kernel" if transforms else "augments_by_kernel"
    monkeypatch.setattr(batches, asked, lambda device: kernel)
    seen = []
    for name in ("Resident", "Streamed"):
        monkeypatch.setattr(
            batches, name, lambda *args, name=name: (seen.append(name), Resident(args[0], args[1], CPU))[1]
        )
    drawn = sampler(augmentation=EVERYTHING if transforms else PAPER)
    source = make_source(Data(prepared, [], 2), drawn, FakeDevice(), torch.bfloat16, range(9))
    assert seen == [kind.__name__]
    assert isinstance(source, Resident if kernel else Ready)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_words_say_where_volumes_are(prepared, kind):
    message = kind(Volumes(prepared, 2), sampler(), torch.device("cuda")).description
    assert message.endswith("on the GPU" if kind is Resident else "streamed from pinned memory")
