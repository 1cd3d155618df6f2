"""Who augments a batch: SimpleITK, the plain definition in PyTorch, and the kernel."""

import functools
import itertools

import numpy as np
import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, SHAPE
from benchmarks.providers import FASTEST
from benchmarks.volumes import new_volumes, training_cases
from vnet_fast.ops.augment import augment, augment_definition
from vnet_fast.training.draws import BatchSampler

CPU = torch.device("cpu")


def average_batch():
    """The parameters of a batch of two volumes of which one is deformed, as on average."""
    sampler = BatchSampler(0, 2, len(training_cases()[0]), SHAPE)
    return next(batch for batch in map(sampler, itertools.count()) if batch.deformed.sum() == 1)


def by_definition(device):
    """A function that augments the average batch by the plain definition, on a device."""
    volumes, batch, classes = new_volumes(), average_batch(), training_cases()[1]
    volumes.send(device)
    cases, others, points = (
        torch.from_numpy(array).to(device) for array in (batch.cases, batch.intensities_of, batch.control_points)
    )

    def run():
        ranks = volumes.ranks[cases].to(torch.int32) & 0xFFFF
        masks, intensities = volumes.masks[cases], volumes.tables[others]
        return augment_definition(ranks, intensities, masks, points, batch.deformed, classes)

    return run


def by_definition_on_one_thread():
    """As `by_definition` on the CPU, on one thread as in a worker process."""
    run = by_definition(CPU)

    def run_alone():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return run_alone


def by_simpleitk():
    """A function that augments the average batch by SimpleITK on one thread."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    from benchmarks import itk_augment

    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    batch, (cases, classes) = average_batch(), training_cases()
    images = [case.image for case in cases]
    masks = [np.minimum(case.mask, 1) if classes == 2 else case.mask for case in cases]

    def run():
        pairs = [
            itk_augment.augment(images[case], masks[case], images[other], points, deformed)
            for case, other, points, deformed in zip(
                batch.cases, batch.intensities_of, batch.control_points, batch.deformed, strict=True
            )
        ]
        return tuple(torch.from_numpy(np.stack(arrays))[:, None] for arrays in zip(*pairs, strict=True))

    return run


def by_kernel():
    """A function that augments the average batch by the Triton kernel."""
    volumes, batch, classes = new_volumes(), average_batch(), training_cases()[1]
    volumes.send(DEVICE)
    arrays = batch.cases, batch.intensities_of, batch.deformed, batch.control_points
    parameters = [torch.from_numpy(array).to(DEVICE) for array in arrays]
    return lambda: augment(volumes.ranks, volumes.tables, volumes.masks, *parameters, classes, FASTEST)


AUGMENTATIONS = {
    "SimpleITK, one thread": by_simpleitk,
    "PyTorch, CPU, one thread": by_definition_on_one_thread,
    "PyTorch, CPU, all threads": functools.partial(by_definition, CPU),
}
if ON_GPU:
    AUGMENTATIONS["PyTorch, GPU"] = functools.partial(by_definition, DEVICE)
    AUGMENTATIONS["kernel, GPU"] = by_kernel
