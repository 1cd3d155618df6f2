"""Augmentation: deformation as ITK's, and the operator."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch.library import opcheck

from vnet_fast.ops import augment, dispatch
from vnet_fast.ops.augment import CONTROL_POINTS

SHAPE = (12, 30, 26)


def control_points(seed=0, n=1, sigma=3.0):
    generator = np.random.default_rng(seed)
    return generator.normal(0, sigma, (n, 2, *[CONTROL_POINTS] * 3)).astype(np.float32)


def smooth_volume(seed=0, shape=SHAPE):
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return scipy.ndimage.gaussian_filter(noise, 1.5)


def itk_transform(points, shape):
    """SimpleITK's B-spline transform with displacements in x and y of (2, 5, 5, 5) control points."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    image = sitk.Image(shape[::-1], sitk.sitkFloat32)
    transform = sitk.BSplineTransformInitializer(image, [2, 2, 2], 3)
    zero = np.zeros(CONTROL_POINTS**3)
    transform.SetParameters([float(v) for v in np.concatenate([points[0].ravel(), points[1].ravel(), zero])])
    return transform


def itk_resampled(array, transform):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    image = sitk.GetImageFromArray(array)
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(image)
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(resampler.Execute(image))


@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 16), (5, 64, 33)], ids=str)
def test_displacement_is_itks(shape):
    points = control_points()
    ours = augment.displacement(torch.from_numpy(points), shape)[0].numpy()
    transform = itk_transform(points[0], shape)
    for z, y, x in np.ndindex(*shape):
        if (z + y + x) % 7:
            continue
        moved = transform.TransformPoint((float(x), float(y), float(z)))
        assert moved == pytest.approx((x + ours[0, z, y, x], y + ours[1, z, y, x], z), abs=1e-4)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_deformation_is_itks(sigma):
    points = control_points(1, n=2, sigma=sigma)
    image = np.stack([smooth_volume(1), smooth_volume(2)])
    mask = (image > 0.05).astype(np.uint8)
    ours_image, ours_mask = augment.deform(
        torch.from_numpy(image), torch.from_numpy(mask), torch.from_numpy(points), num_classes=2
    )
    inside = (slice(None), slice(2, -2), slice(2, -2))
    for n in range(2):
        transform = itk_transform(points[n], SHAPE)
        theirs = itk_resampled(image[n], transform)
        # beyond the border ITK takes the nearest voxel, we the nearest point of the border
        close = np.abs(ours_image[n].numpy() - theirs) <= 1e-4 * np.ptp(image)
        assert close[inside].mean() > 0.97
        assert close.mean() > 0.9
        share = itk_resampled(mask[n].astype(np.float32), transform)
        decided = (np.abs(share - 0.5) > 1e-3) & close
        np.testing.assert_array_equal(ours_mask[n].numpy()[decided], (share > 0.5)[decided])


def test_deformation_inside_is_itks_everywhere():
    """A volume that is constant towards its border is the same whatever lies beyond."""
    image = np.zeros((1, *SHAPE), np.float32)
    image[0, 4:8, 10:20, 9:17] = smooth_volume()[4:8, 10:20, 9:17]
    points = control_points(3)
    ours, _ = augment.deform(
        torch.from_numpy(image), torch.zeros(1, *SHAPE, dtype=torch.uint8), torch.from_numpy(points), 2
    )
    theirs = itk_resampled(image[0], itk_transform(points[0], SHAPE))
    np.testing.assert_allclose(ours[0].numpy(), theirs, atol=1e-4 * np.ptp(image))


def test_labels_are_deformed_each_and_the_largest_wins():
    points = torch.from_numpy(control_points(4))
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[:, 3:9, 8:22, 6:13], mask[:, 3:9, 8:22, 13:20] = 1, 3
    image = torch.zeros(1, *SHAPE)
    _, deformed = augment.deform(image, mask, points, num_classes=4)
    shares = torch.stack([augment.deform((mask == k).float(), mask, points, 2)[0] for k in range(4)])
    decided = (shares.sort(0).values[-1] - shares.sort(0).values[-2]) > 1e-4
    assert decided.float().mean() > 0.99
    assert torch.equal(deformed[decided].long(), shares.argmax(0)[decided])
    assert deformed.dtype == torch.uint8


def test_no_displacement_changes_nothing():
    image, mask = torch.from_numpy(smooth_volume())[None], torch.randint(3, (1, *SHAPE), dtype=torch.uint8)
    deformed = augment.deform(image, mask, torch.zeros(1, 2, 5, 5, 5), 3)
    torch.testing.assert_close(deformed[0], image, rtol=1e-5, atol=1e-5)
    assert torch.equal(deformed[1], mask)


def test_a_shift_of_all_control_points_shifts_the_volume():
    points = torch.zeros(1, 2, 5, 5, 5)
    points[:, 0], points[:, 1] = 3, -2
    image = torch.from_numpy(smooth_volume())[None]
    deformed, _ = augment.deform(image, torch.zeros_like(image, dtype=torch.uint8), points, 2)
    torch.testing.assert_close(deformed[:, :, 2:, :-3], image[:, :, :-2, 3:], rtol=1e-4, atol=1e-4)


def test_augment_mixes_matched_and_deformed():
    ranks = torch.randint(0, 65536, (2, *SHAPE))
    tables = torch.sort(torch.randn(2, 65536), 1).values
    masks = torch.randint(2, (2, *SHAPE), dtype=torch.uint8)
    points = torch.from_numpy(control_points(5, n=2))
    image, mask = augment.augment_definition(ranks, tables, masks, points, np.array([False, True]), 2)
    assert image.shape == mask.shape == (2, 1, *SHAPE)
    matched = torch.stack([tables[n][ranks[n]] for n in range(2)])
    assert torch.equal(image[0, 0], matched[0])
    assert torch.equal(mask[0, 0], masks[0])
    expected = augment.deform(matched[1:], masks[1:], points[1:], 2)
    assert torch.equal(image[1:, 0], expected[0])
    assert torch.equal(mask[1:, 0], expected[1])
    assert not torch.equal(mask[1, 0], masks[1])


def stored_volumes(m=3, shape=(4, 9, 10), classes=3):
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(-(2**15), 2**15, (m, *shape), generator=generator, dtype=torch.int16)
    tables = torch.randn(m, 65536, generator=generator).sort(1).values
    masks = torch.randint(classes, (m, *shape), generator=generator, dtype=torch.uint8)
    return ranks, tables, masks


def choices(n=2, deformed=(True, False)):
    points = 2 * torch.randn(n, 2, 5, 5, 5, generator=torch.Generator().manual_seed(1))
    points *= torch.tensor(deformed)[:, None, None, None, None]
    return torch.tensor([2, 0]), torch.tensor([1, 1]), torch.tensor(deformed), points


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_augment_is_registered_fully(dtype):
    opcheck(torch.ops.vnet_fast.augment.default, (*stored_volumes(), *choices(), 3, dtype))


def test_augment_gathers_what_the_choices_name():
    (ranks, tables, masks), (cases, others, deformed, points) = stored_volumes(), choices()
    image, mask = augment.augment(ranks, tables, masks, cases, others, deformed, points, 3)
    unsigned = ranks[cases].long() % 65536
    expected = augment.augment_definition(unsigned, tables[others], masks[cases], points, deformed.numpy(), 3)
    assert torch.equal(image, expected[0])
    assert torch.equal(mask, expected[1])
    assert torch.equal(mask[1, 0], masks[0])
    assert not torch.equal(mask[0, 0], masks[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_augment_through_the_kernel(through_kernels, monkeypatch, dtype):
    arguments = (*stored_volumes(), *choices(), 3, dtype)
    ran, kernels = [], dispatch.load_kernels("augment")
    original = kernels.augment
    monkeypatch.setattr(kernels, "augment", lambda *args: (ran.append(1), original(*args))[1])
    image, mask = augment.augment(*arguments)
    assert ran == [1]
    monkeypatch.setattr(dispatch, "can_run_kernels", lambda tensor: False)
    expected, labels = augment.augment(*arguments)
    assert ran == [1]
    spread = float(expected.float().max() - expected.float().min())
    assert (image.float() - expected.float()).abs().max() <= (1e-3 + torch.finfo(dtype).eps) * spread
    assert (mask != labels).float().mean() < 0.01


def test_what_augments_by_kernel(monkeypatch):
    assert not augment.augments_by_kernel(torch.device("cpu"))
    monkeypatch.setattr(augment, "load_kernels", lambda name: None)
    assert not augment.augments_by_kernel(torch.device("cuda"))
    monkeypatch.setattr(augment, "load_kernels", lambda name: name)
    assert augment.augments_by_kernel(torch.device("cuda"))
