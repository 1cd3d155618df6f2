"""Who augments a batch: SimpleITK, MONAI, the plain definition in PyTorch, and the kernels."""

import functools
import itertools

import numpy as np
import pytest
import torch

from benchmarks.measure import CHOICE, DEVICE, ON_GPU, SHAPE
from benchmarks.providers import FASTEST
from benchmarks.volumes import SPACING, new_volumes, training_cases
from vnet_fast.data.phantom import phantoms
from vnet_fast.ops import cpu_convolution_choice
from vnet_fast.ops.augment import augment, augment_definition
from vnet_fast.ops.patches import patches, patches_definition
from vnet_fast.ops.transform import transform, transform_definition
from vnet_fast.run.augmentation import Augmentation
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.patches import Middles
from vnet_fast.training.volumes import WholeVolumes

CPU = torch.device("cpu")
# all that there is, for every volume
EVERYTHING = Augmentation(
    deformation=1.0, rotation=(1, 30, 30), scaling=(1, 0.7, 1.4), flip="xyz", brightness=(1, 0.75, 1.25),
    contrast=(1, 0.75, 1.25), gamma=(1, 0.7, 1.5), noise=(1, 0.3), low_resolution=(1, 2),
)  # fmt: skip
# voxels along each axis of patches, and of the volumes that they are read from (x, y, z)
LENGTH, STORED = (24, (32, 32, 28)) if CHOICE == "tiny" else (96, (128, 128, 112))
PATCH, CLASSES = (LENGTH,) * 3, 2


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


def on_one_thread(make):
    """As `make`, on one thread as in a worker process."""
    run = make()

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


@functools.cache
def transformed_batch():
    """The parameters of a batch of two volumes that change in every way."""
    return BatchSampler(0, 2, len(training_cases()[0]), SHAPE, augmentation=EVERYTHING, spacing=SPACING)(0)


def transformed_by_definition(device):
    """A function that changes two volumes in every way by the plain definition, on a device."""
    volumes, batch, classes = new_volumes(), transformed_batch(), training_cases()[1]
    volumes.send(device)
    cases, others, _, points, _ = (torch.from_numpy(array).to(device) for array in batch.arrays)

    def run():
        ranks = volumes.ranks[cases].to(torch.int32) & 0xFFFF
        masks, intensities = volumes.masks[cases], volumes.tables[others]
        return transform_definition(ranks, intensities, masks, points, batch.deformed, batch.transforms, classes)

    return run


def transformed_by_kernel(device):
    """A function that changes two volumes in every way by the kernel, Triton's or the CPU's."""
    skip_without_kernels(device)
    volumes, classes = new_volumes(), training_cases()[1]
    volumes.send(device)
    parameters = [torch.from_numpy(array).to(device) for array in transformed_batch().arrays]
    dtype = torch.float32 if device == CPU else FASTEST
    return lambda: transform(volumes.ranks, volumes.tables, volumes.masks, *parameters, classes, dtype)


def skip_without_kernels(device):
    """Skips if the CPU's kernels can't run, or should not, so that no definition is timed in their place."""
    if device == CPU and not cpu_convolution_choice.kernels_run():
        pytest.skip("no kernel: no C++ compiler, or VNET_FAST_CPU_CONV=onednn")


def monais_transforms(shape):
    """MONAI's transforms of the same kinds and ranges as EVERYTHING, without matching, for volumes of a shape."""
    transforms = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
    keys, radians = ("image", "mask"), np.pi / 6
    size = [length / 64 for length in shape]
    return transforms.Compose(
        [
            transforms.RandAxisFlipd(keys, prob=0.875),
            # the deformation: its mesh is smoothed, and resampled together with the affine map
            transforms.Rand3DElasticd(
                keys, (2, 3), size, prob=1, rotate_range=[radians] * 3, scale_range=[0.35] * 3,
                mode=("bilinear", "nearest"), padding_mode="border",
            ),
            transforms.RandSimulateLowResolutiond("image", prob=1, zoom_range=(0.5, 1)),
            transforms.RandGaussianNoised("image", prob=1, std=0.3),
            transforms.RandScaleIntensityd("image", factors=0.25, prob=1),
            transforms.RandScaleIntensityFixedMeand("image", factors=0.25, prob=1, preserve_range=True),
            transforms.RandAdjustContrastd("image", prob=1, gamma=(0.7, 1.5)),
        ]
    )  # fmt: skip


def by_monai(pairs, shape):
    """A function that changes volumes and their masks by MONAI's transforms.

    Args:
        pairs: of arrays (D, H, W).
        shape: of all of them.
    """
    steps = monais_transforms(shape)
    pairs = [{"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]} for image, mask in pairs]

    def run():
        changed = [steps(dict(pair)) for pair in pairs]
        return tuple(torch.stack([pair[key].as_tensor() for pair in changed]) for key in ("image", "mask"))

    return run


def transformed_by_monai():
    """A function that changes two volumes by MONAI's transforms."""
    cases = training_cases()[0]
    return by_monai([(cases[case].image, cases[case].mask) for case in transformed_batch().cases], SHAPE)


@functools.cache
def stored_volumes():
    """Whole volumes, larger than their patches, and the parameters of two patches that change in every way."""
    cases = phantoms(0, 3, STORED, SPACING)
    sampler = BatchSampler(
        0, 2, len(cases), PATCH, augmentation=EVERYTHING, spacing=SPACING, middles=Middles.of(cases, CLASSES)
    )
    return cases, WholeVolumes(cases, CLASSES, PATCH), sampler(0)


def patches_by_kernel():
    """A function that reads two patches, changed in every way, by the CPU's kernel."""
    skip_without_kernels(CPU)
    _, volumes, batch = stored_volumes()
    arguments = volumes.ranks, volumes.tables, volumes.masks, volumes.places, *map(torch.from_numpy, batch.arrays)
    return lambda: patches(*arguments, PATCH, CLASSES)


def patches_by_definition():
    """A function that reads two patches, changed in every way, by the plain definition."""
    _, volumes, batch = stored_volumes()
    cases, intensities_of, deformed, points, rows = batch.arrays
    stored = volumes.ranks, volumes.tables, volumes.masks, volumes.places.numpy()
    return lambda: patches_definition(
        *stored, cases, intensities_of, deformed, torch.from_numpy(points), rows, PATCH, CLASSES
    )


def patches_by_monai():
    """A function that changes two patches, cropped before, by MONAI's transforms."""
    cases, _, batch = stored_volumes()
    crop = tuple(slice(length) for length in PATCH)
    return by_monai([(cases[case].image[crop], cases[case].mask[crop]) for case in batch.cases], PATCH)


AUGMENTATIONS = {
    "SimpleITK, one thread": by_simpleitk,
    "PyTorch, CPU, one thread": functools.partial(on_one_thread, functools.partial(by_definition, CPU)),
    "PyTorch, CPU, all threads": functools.partial(by_definition, CPU),
}
TRANSFORMS = {
    "MONAI, one thread": functools.partial(on_one_thread, transformed_by_monai),
    "PyTorch, CPU, one thread": functools.partial(on_one_thread, functools.partial(transformed_by_definition, CPU)),
    "PyTorch, CPU, all threads": functools.partial(transformed_by_definition, CPU),
    "kernel, CPU, one thread": functools.partial(on_one_thread, functools.partial(transformed_by_kernel, CPU)),
    "kernel, CPU, all threads": functools.partial(transformed_by_kernel, CPU),
}
# the first one is what the others are compared with
PATCHES = {
    f"{name}, {threads}": functools.partial(on_one_thread, make) if threads == "one thread" else make
    for name, make in {
        "MONAI": patches_by_monai, "PyTorch": patches_by_definition, "kernel": patches_by_kernel,
    }.items()
    for threads in ("one thread", "all threads")
}  # fmt: skip
if ON_GPU:
    AUGMENTATIONS["PyTorch, GPU"] = functools.partial(by_definition, DEVICE)
    AUGMENTATIONS["kernel, GPU"] = by_kernel
    TRANSFORMS["PyTorch, GPU"] = functools.partial(transformed_by_definition, DEVICE)
    TRANSFORMS["kernel, GPU"] = functools.partial(transformed_by_kernel, DEVICE)
