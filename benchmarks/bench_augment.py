"""Augmentation of a batch by SimpleITK, MONAI, PyTorch and the kernels, in volumes a second."""

import functools

import pytest
import torch

from benchmarks import tables
from benchmarks.augmentations import (
    AUGMENTATIONS,
    CPU,
    PATCHES,
    TRANSFORMS,
    by_definition,
    patches_by_definition,
    transformed_by_definition,
)
from benchmarks.measure import DEVICE, ON_GPU, time_of
from benchmarks.providers import Beside
from vnet_fast.ops.augment import augments_by_kernel
from vnet_fast.ops.transform import transforms_by_kernel

ROUNDS = 20 if ON_GPU else 3
PATCH_ROUNDS, PATCH_WARM_UP = 7, 1
RATE = "volumes/s"
# the histograms of SimpleITK are coarser than the definition's, and its labels are those of the nearest voxel
LEAST_CORRELATION, MOST_DIFFERING = 0.9, 0.01


def check(image, mask, definition):
    """Raises AssertionError if a batch is not close to that of the definition, which a function returns."""
    expected, expected_mask = definition()
    image, mask = image.cpu().double(), mask.cpu()
    correlation = torch.corrcoef(torch.stack([image.flatten(), expected.double().flatten()]))[0, 1].item()
    assert correlation > LEAST_CORRELATION, f"its images correlate with the definition's by {correlation:.3f} only"
    differing = (mask != expected_mask).float().mean().item()
    assert differing < MOST_DIFFERING, f"{100 * differing:.1f} % of its labels are not the definition's"


@pytest.mark.parametrize("name", AUGMENTATIONS)
def bench_augment(benchmark, name):
    """Times the augmentation of two volumes, of which one is deformed."""
    if name == "kernel, GPU" and not augments_by_kernel(DEVICE):
        pytest.skip("no kernel: Triton is not installed")
    benchmark.group = "augmentation of two volumes, one deformed"
    cells = {"provider": name}
    with tables.failure_as_row("augmentation", cells, RATE, ours="kernel" in name):
        run = AUGMENTATIONS[name]()
        check(*run(), by_definition(CPU))
        seconds = time_of(benchmark, run, ROUNDS, warm_up=1).median
        cells |= {RATE: 2 / seconds, "one volume, ms": 1e3 * seconds / 2}
        tables.keep(benchmark, "augmentation", cells)


@pytest.mark.parametrize("name", TRANSFORMS)
def bench_transform(benchmark, name):
    """Times the augmentation of two volumes, each in every way that there is."""
    if name == "kernel, GPU" and not transforms_by_kernel(DEVICE):
        pytest.skip("no kernel: Triton is not installed")
    benchmark.group = "augmentation of two volumes in every way"
    cells = {"provider": f"everything: {name}"}
    with tables.failure_as_row("augmentation", cells, RATE, ours="kernel" in name):
        run = TRANSFORMS[name]()
        image, mask = run()
        # MONAI draws its own parameters
        if "MONAI" not in name:
            check(image, mask, transformed_by_definition(CPU))
        seconds = time_of(benchmark, run, ROUNDS, warm_up=1).median
        cells |= {RATE: 2 / seconds, "one volume, ms": 1e3 * seconds / 2}
        tables.keep(benchmark, "augmentation", cells)


@functools.cache
def baseline():
    """The first of PATCHES, after its first run."""
    run = next(iter(PATCHES.values()))()
    run()
    return run


@pytest.mark.skipif(ON_GPU, reason="it compares the CPU's kernel")
@pytest.mark.parametrize("name", PATCHES)
def bench_patches(benchmark, name):
    """Times the augmentation of two patches of larger volumes, each in every way that there is."""
    benchmark.group = "augmentation of two patches in every way"
    is_first = name == next(iter(PATCHES))
    cells, beside = {"provider": name}, Beside(None if is_first else baseline)
    with tables.failure_as_row("patches", cells, RATE, ours="kernel" in name):
        run = PATCHES[name]()
        image, mask = run()
        # MONAI draws its own parameters
        if "MONAI" not in name:
            check(image, mask, patches_by_definition())
        seconds = time_of(benchmark, run, PATCH_ROUNDS, PATCH_WARM_UP, beside).median
        cells |= {RATE: 2 / seconds, "one patch, ms": 1e3 * seconds / 2}
        tables.keep(benchmark, "patches", cells | {"times MONAI on one thread": beside.ratio(seconds, PATCH_WARM_UP)})
