"""Transforms: places as SimpleITK's, intensities as MONAI's and nnU-Net's, noise as Philox's, and the operator."""

import math

import numpy as np
import pytest
import torch
from monai.transforms import AdjustContrast, ScaleIntensity, ScaleIntensityFixedMean
from torch.library import opcheck

from tests.ops.test_augment import SHAPE, choices, control_points, smooth_volume, stored_volumes
from vnet_fast.ops import augment, dispatch, transform
from vnet_fast.ops.intensities import change_intensities, standard_normal
from vnet_fast.ops.transform import move
from vnet_fast.ops.transform_rows import BRIGHTNESS, CELLS, CONTRAST, GAMMA, INVERTED, MOVED, NOISE, SEED, identity_row
from vnet_fast.training.transforms import affine_map, lattice_cells

SPACING = (1.0, 1.3, 2.5)
DEGREES = math.pi / 180


def row_of(shape=SHAPE, angles=(0, 0, 0), scale=1.0, mirrored="", factor=1.0, spacing=SPACING, **columns):
    """The row of a volume, with columns by their names in lower case."""
    row, flips = identity_row(shape), np.array([axis in mirrored for axis in "xyz"])
    row[:12] = affine_map(DEGREES * np.array(angles), scale, flips, shape, spacing).ravel()
    row[CELLS:MOVED] = lattice_cells(factor, shape, spacing)
    row[MOVED] = not np.array_equal(row[:MOVED], identity_row(shape)[:MOVED])
    names = {"noise": NOISE, "seed": SEED, "brightness": BRIGHTNESS, "contrast": CONTRAST, "gamma": GAMMA}
    for name, value in columns.items():
        row[INVERTED if name == "inverted" else names[name]] = value
    return row


def moved(image, mask, row, classes, points=None):
    image, mask = move(torch.from_numpy(image), torch.from_numpy(mask), points, row, classes)
    return image.numpy(), mask.numpy()


def itk_moved(array, angles, scale, mirrored):
    """SimpleITK's rotation, scaling and mirroring about the centre of a volume of SPACING; NaN from beyond it."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    centre = image.TransformContinuousIndexToPhysicalPoint([(length - 1) / 2 for length in image.GetSize()])
    rotation = sitk.Euler3DTransform(centre, *(DEGREES * np.array(angles)).tolist())
    rotation.SetComputeZYX(True)
    scaling = sitk.ScaleTransform(3, [(-1 if axis in mirrored else 1) / scale for axis in "xyz"])
    scaling.SetCenter(centre)
    # the last one is applied first
    both = sitk.CompositeTransform([rotation, scaling])
    return sitk.GetArrayFromImage(sitk.Resample(image, image, both, sitk.sitkLinear, math.nan))


@pytest.mark.parametrize(
    ("angles", "scale", "mirrored"),
    [((0, 0, 20), 1, ""), ((25, -15, 0), 1, ""), ((0, 0, 0), 1.3, "y"), ((10, 20, -30), 0.8, "xz")],
    ids=["in_plane", "out_of_plane", "scaled", "all"],
)
def test_rotation_scaling_and_mirrors_are_itks(angles, scale, mirrored):
    image = smooth_volume(1)
    mask = np.digitize(image, [0.05, 0.2]).astype(np.uint8)
    ours, labels = moved(image, mask, row_of(angles=angles, scale=scale, mirrored=mirrored), 3)
    theirs = itk_moved(image, angles, scale, mirrored)
    inside = ~np.isnan(theirs)
    assert inside.mean() > 0.4
    assert not np.allclose(theirs[inside], image[inside], atol=0.1 * np.ptp(image))
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4 * np.ptp(image))
    shares = np.stack([itk_moved((mask == k).astype(np.float32), angles, scale, mirrored) for k in range(3)])
    decided = inside & (np.diff(np.sort(shares, axis=0), axis=0)[-1] > 1e-3)
    assert decided.sum() > 0.9 * inside.sum()
    np.testing.assert_array_equal(labels[decided], shares.argmax(0)[decided])


def test_beyond_the_volume_is_its_border():
    image, mask = smooth_volume(2), np.zeros(SHAPE, np.uint8)
    mask[:, :, -1] = 2
    row = row_of()
    # four voxels to the right of each
    row[3], row[MOVED] = 4, 1
    ours, labels = moved(image, mask, row, 3)
    np.testing.assert_allclose(ours[:, :, :-4], image[:, :, 4:], atol=1e-5)
    np.testing.assert_allclose(ours[:, :, -4:], np.repeat(image[:, :, -1:], 4, axis=2), atol=1e-5)
    assert (labels[:, :, -5:] == 2).all()
    assert not labels[:, :, :-5].any()


@pytest.mark.parametrize("mirrored", ["x", "yz"])
def test_mirrors_alone_are_exact(mirrored):
    image, mask = smooth_volume(3), np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    ours, labels = moved(image, mask, row_of(mirrored=mirrored), 3)
    axes = ["zyx".index(axis) for axis in mirrored]
    np.testing.assert_array_equal(ours, np.flip(image, axes))
    np.testing.assert_array_equal(labels, np.flip(mask, axes))


def test_deformation_and_rotation_move_together():
    """Output voxel o is read at M o + s(o): a constant displacement is one more translation."""
    points = torch.zeros(2, 5, 5, 5)
    points[0], points[1] = 1.5, -2
    image, mask = smooth_volume(4), (smooth_volume(4) > 0).astype(np.uint8)
    row = row_of(angles=(5, 0, 20), scale=1.1)
    shifted = row.copy()
    shifted[[3, 7]] += [1.5, -2]
    both, expected = moved(image, mask, row, 2, points), moved(image, mask, shifted, 2)
    np.testing.assert_allclose(both[0], expected[0], atol=1e-5)
    assert (both[1] != expected[1]).mean() < 1e-3
    assert not np.allclose(both[0], moved(image, mask, row, 2)[0], atol=0.1 * np.ptp(image))


@pytest.mark.parametrize("factor", [1.7, 4.0])
def test_low_resolution_reads_a_coarser_lattice(factor):
    """Nearest voxels at the nodes, linear between them; an axis with longer voxels keeps them, and so do labels."""
    image, mask = smooth_volume(5), np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    ours, labels = moved(image, mask, row_of(factor=factor), 3)
    np.testing.assert_array_equal(labels, mask)
    expected = image
    for axis, (length, spacing) in enumerate(zip(SHAPE, SPACING[::-1], strict=True)):
        cells = min(length - 1, max(1, round((length - 1) * spacing / factor)))
        assert (cells == length - 1) == (spacing >= factor)
        nodes = np.linspace(0, length - 1, cells + 1)
        coarse = np.moveaxis(expected, axis, -1)[..., np.floor(nodes + 0.5 + 1e-9).astype(int)]
        lines = [np.interp(np.arange(length), nodes, line) for line in coarse.reshape(-1, cells + 1)]
        expected = np.moveaxis(np.reshape(lines, (*coarse.shape[:-1], length)), -1, axis)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.ptp(image))
    assert np.abs(ours - image).mean() > 0.02 * image.std()


@pytest.mark.parametrize(
    "place", [{"angles": (5, 0, 20), "mirrored": "x"}, {"mirrored": "xz"}], ids=["turned", "mirrored"]
)
def test_low_resolution_of_a_moved_volume_leaves_its_labels(place):
    image, mask = smooth_volume(6), (smooth_volume(6) > 0).astype(np.uint8)
    coarse, fine = (moved(image, mask, row_of(**place, factor=factor), 2) for factor in (3.0, 1.0))
    np.testing.assert_array_equal(coarse[1], fine[1])
    assert np.corrcoef(coarse[0].ravel(), fine[0].ravel())[0, 1] > 0.6
    assert np.abs(coarse[0] - fine[0]).mean() > 0.02 * image.std()


def changed(image, **columns):
    return change_intensities(image, image.min(), image.max(), row_of(image.shape, **columns))


@pytest.mark.parametrize("gamma", [0.7, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_monais(gamma, inverted):
    image = torch.from_numpy(smooth_volume(7))
    expected = AdjustContrast(gamma, invert_image=inverted)(image)
    torch.testing.assert_close(changed(image, gamma=gamma, inverted=inverted), expected.as_tensor())


@pytest.mark.parametrize("factor", [0.75, 1.25])
def test_brightness_and_contrast_are_monais(factor):
    """The foreground's mean is zero; here it is that of the volume, which is the mean that MONAI keeps."""
    image = torch.from_numpy(smooth_volume(8))
    image -= image.mean()
    torch.testing.assert_close(changed(image, brightness=factor), ScaleIntensity(None, None, factor - 1)(image))
    contrast = ScaleIntensityFixedMean(factor - 1, preserve_range=True, fixed_mean=True)
    torch.testing.assert_close(changed(image, contrast=factor), contrast(image))


@pytest.mark.parametrize("contrast", [0.8, 1.3])
def test_intensities_change_one_after_the_other(contrast):
    image = torch.from_numpy(smooth_volume(9))
    noisy = changed(image, noise=0.1, seed=5)
    assert (noisy - image).std().item() == pytest.approx(0.1, rel=0.02)
    # the range is that of the volume without noise
    low, high = 1.2 * image.min(), 1.2 * image.max()
    step = torch.clamp(1.2 * noisy * contrast, low, high)
    low, high = min(contrast, 1) * low, min(contrast, 1) * high
    expected = low + ((step - low) / (high - low)).clamp(0, 1) ** 1.4 * (high - low)
    found = changed(image, noise=0.1, seed=5, brightness=1.2, contrast=contrast, gamma=1.4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("columns", [{"gamma": 0.7}, {"gamma": 1.5, "inverted": 1}, {"contrast": 1.2}], ids=str)
def test_a_constant_volume_stays_finite(columns):
    image = torch.full((2, 3, 4), -1.5)
    torch.testing.assert_close(changed(image, **columns), image)


def test_noise_is_philox():
    """The generator's published test vector, for a counter and a key of zero."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    radii = [math.sqrt(-2 * math.log(((word >> 8) + 1) / 2**24)) for word in words[::2]]
    turns = [2 * math.pi * (word >> 8) / 2**24 for word in words[1::2]]
    expected = [f(turn) * radius for radius, turn in zip(radii, turns, strict=True) for f in (math.cos, math.sin)]
    assert standard_normal(0, 4).tolist() == pytest.approx(expected, abs=1e-6)


def test_noise_is_normal_and_depends_on_the_seed():
    numbers = standard_normal(123_456_789, 99_999)
    assert numbers.mean().item() == pytest.approx(0, abs=0.02)
    assert numbers.std().item() == pytest.approx(1, abs=0.02)
    assert (numbers.abs() < 1.96).float().mean().item() == pytest.approx(0.95, abs=0.005)
    assert torch.equal(standard_normal(123_456_789, 10), numbers[:10])
    pairs = torch.stack([numbers[:-1], numbers[1:], standard_normal(123_456_790, 99_998)])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 0.02
    # the key has 32 bits
    assert not torch.equal(standard_normal(1 << 31, 10), standard_normal(0, 10))


ROWS = ({"angles": (10, 5, 20), "factor": 2.0, "noise": 0.2, "seed": 3, "gamma": 1.3}, {"mirrored": "x"})


def rows(shape, *settings):
    return torch.from_numpy(np.stack([row_of(shape, **setting) for setting in settings]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transform_is_registered_fully(dtype):
    arguments = (*stored_volumes(), *choices(), rows((4, 9, 10), *ROWS), 3, dtype)
    opcheck(torch.ops.vnet_fast.transform.default, arguments)


def test_rows_that_change_nothing_leave_the_papers_augmentation(monkeypatch):
    arguments = (*stored_volumes(), *choices())
    image, mask = augment.augment(*arguments, 3)
    found, labels = transform.transform(*arguments, rows((4, 9, 10), {}, {}), 3)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-4)
    assert torch.equal(labels, mask)
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    for tensor, expected in zip(
        transform.transform(*arguments, rows((4, 9, 10), {}, {}), 3), (image, mask), strict=True
    ):
        assert torch.equal(tensor, expected)


def test_threads_do_not_change_what_is_sampled(monkeypatch):
    image, points = torch.from_numpy(smooth_volume(10)), torch.from_numpy(control_points()[0])
    mask = (image > 0).to(torch.uint8)
    found = []
    for threads in (1, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(move(image, mask, points, row_of(angles=(5, 5, 20)), 2))
    for tensor, expected in zip(*found, strict=True):
        assert torch.equal(tensor, expected)


def test_transform_through_the_kernel(through_kernels, monkeypatch):
    arguments = (*stored_volumes(), *choices(), rows((4, 9, 10), *ROWS), 3)
    ran, kernels = [], dispatch.load_kernels("transform")
    original = kernels.transform
    monkeypatch.setattr(kernels, "transform", lambda *args: (ran.append(1), original(*args))[1])
    image, mask = transform.transform(*arguments)
    assert ran == [1]
    monkeypatch.setattr(dispatch, "can_run_kernels", lambda tensor: False)
    expected, labels = transform.transform(*arguments)
    assert ran == [1]
    assert (image - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    assert (mask != labels).float().mean() < 0.01


def test_what_transforms_by_kernel(monkeypatch):
    assert not transform.transforms_by_kernel(torch.device("cpu"))
    monkeypatch.setattr(transform, "load_kernels", lambda name: name)
    assert transform.transforms_by_kernel(torch.device("cuda"))
