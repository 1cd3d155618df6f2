import math

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
)
from scipy import ndimage

from vnet_fast.evaluation.metrics import METRICS, dice, dice_per_class, hausdorff_distance, measure

NAMES = (
    "dice",
    "jaccard",
    "hausdorff_mm",
    "hausdorff_95_mm",
    "average_boundary_distance_mm",
    "relative_volume_difference_percent",
    "absolute_relative_volume_difference_percent",
    "prediction_ml",
    "reference_ml",
)
DISTANCES = NAMES[2:5]
SPACINGS = pytest.mark.parametrize(
    "spacing",
    [(1, 1, 1), (0.5, 0.7, 3.0), (0.48828125, 0.48828125, 3.3000011)],
    ids=["isotropic", "anisotropic", "many digits"],
)


def blob(seed, shape=(14, 17, 19)):
    """A mask of several pieces with holes, some at the volume's border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return noise > np.quantile(noise, 0.9)


def ball(shape, centre, radius, spacing):
    """The voxels whose centres are in a ball; centre and radius in mm, x y z."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    squares = [(axis * step - c) ** 2 for axis, step, c in zip((x, y, z), spacing, centre, strict=True)]
    return sum(squares) <= radius**2


def test_names_and_order():
    assert tuple(metric.name for metric in METRICS) == NAMES
    assert tuple(measure(blob(0), blob(1), (1, 1, 1))) == NAMES


def test_a_perfect_prediction_has_the_perfect_values():
    values = measure(blob(0), blob(0), (0.5, 0.7, 3))
    for metric in METRICS:
        if metric.perfect is not None:
            assert values[metric.name] == metric.perfect, metric.name
        assert type(values[metric.name]) is float


def test_dice_by_counting():
    a, b = np.zeros((2, 4, 4, 4), bool)
    a[:2], b[1:3] = True, True
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a, a & False) == 0
    assert math.isnan(dice(a & False, a & False))


def test_dice_per_class():
    a, b = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    assert dice_per_class(a, b, 4) == pytest.approx([2 / 3, 2 / 3, math.nan], nan_ok=True)


@pytest.mark.parametrize("seed", range(4))
@SPACINGS
def test_against_monai(seed, spacing):
    a, b = blob(seed), blob(seed + 100)
    tensors = [torch.from_numpy(mask)[None, None].double() for mask in (a, b)]
    surfaces = {"include_background": True, "spacing": spacing[::-1]}
    expected = {
        "dice": compute_dice(*tensors),
        "jaccard": compute_iou(*tensors),
        "hausdorff_mm": compute_hausdorff_distance(*tensors, **surfaces),
        "hausdorff_95_mm": compute_hausdorff_distance(*tensors, percentile=95, **surfaces),
        "average_boundary_distance_mm": compute_average_surface_distance(*tensors, symmetric=True, **surfaces),
    }
    measured = measure(a, b, spacing)
    for name, value in expected.items():
        limit = {"abs": 1e-5} if name in DISTANCES else {"rel": 1e-6}
        assert measured[name] == pytest.approx(value.item(), **limit), name


@pytest.mark.parametrize("seed", range(4))
@SPACINGS
def test_distances_against_scipy(seed, spacing):
    a, b = blob(seed), blob(seed + 100)
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing[::-1]) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    measured = measure(a, b, spacing)
    assert measured["hausdorff_mm"] == pytest.approx(max(there.max(), back.max()), abs=1e-9)
    assert measured["hausdorff_95_mm"] == pytest.approx(
        max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-9
    )
    mean = (there.sum() + back.sum()) / (there.size + back.size)
    assert measured["average_boundary_distance_mm"] == pytest.approx(mean, abs=1e-9)
    assert hausdorff_distance(a, b, spacing) == measured["hausdorff_mm"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.6, 0.6, 3.0), (0.5, 0.7, 3.0)], ids=str)
def test_balls_in_closed_form(seed, spacing):
    """The boundaries of two balls with the same centre are r2 - r1 apart everywhere.

    The centres of the boundary voxels are not exactly on the balls: single distances differ from r2 - r1 by up to
    the diagonal of a voxel, and their mean by up to half of it.
    """
    generator = np.random.default_rng(seed)
    small = generator.uniform(6, 12)
    large = small + generator.uniform(1, 8)
    shape = tuple(int(2 * (large + 4) / step) for step in spacing[::-1])
    middle = [(n - 1) / 2 * step for n, step in zip(shape[::-1], spacing, strict=True)]
    centre = np.array(middle) + generator.uniform(-0.5, 0.5, 3) * spacing
    measured = measure(ball(shape, centre, small, spacing), ball(shape, centre, large, spacing), spacing)
    diagonal = np.linalg.norm(spacing)
    assert measured["average_boundary_distance_mm"] == pytest.approx(large - small, abs=diagonal / 2)
    assert measured["hausdorff_95_mm"] == pytest.approx(large - small, abs=diagonal)
    assert measured["hausdorff_mm"] == pytest.approx(large - small, abs=diagonal)
    # the volume of a ball of voxels is off by some per cent
    ratio = (small / large) ** 3
    assert measured["jaccard"] == pytest.approx(ratio, rel=0.1)
    assert measured["dice"] == pytest.approx(2 * ratio / (1 + ratio), rel=0.1)
    assert measured["relative_volume_difference_percent"] == pytest.approx(100 * (ratio - 1), abs=5)
    assert measured["reference_ml"] == pytest.approx(4 / 3 * math.pi * large**3 / 1000, rel=0.05)


@pytest.mark.parametrize(("axis", "step"), [(0, 3.0), (1, 0.7), (2, 0.5)], ids="zyx")
def test_shifted_boxes_in_closed_form(axis, step):
    """A box of 6 x 8 x 10 voxels, and the same box shifted by four voxels: 2, 4 or 6 slices overlap."""
    reference = np.zeros((20, 20, 20), bool)
    reference[3:9, 3:11, 3:13] = True
    prediction = np.roll(reference, 4, axis=axis)
    length = (6, 8, 10)[axis]
    measured = measure(prediction, reference, (0.5, 0.7, 3.0))
    assert measured["hausdorff_mm"] == pytest.approx(4 * step, abs=1e-6)
    assert measured["dice"] == pytest.approx((length - 4) / length, rel=1e-9)
    assert measured["jaccard"] == pytest.approx((length - 4) / (length + 4), rel=1e-9)
    assert measured["relative_volume_difference_percent"] == 0
    assert measured["prediction_ml"] == pytest.approx(480 * 0.5 * 0.7 * 3 / 1000, rel=1e-9)


@pytest.mark.parametrize("axis", range(3), ids="zyx")
def test_parallel_plates_in_closed_form(axis):
    """In plates one voxel thick, each voxel is boundary and equally far from the other plate."""
    a, b = np.zeros((2, 9, 9, 9), bool)
    np.moveaxis(a, axis, 0)[2] = True
    np.moveaxis(b, axis, 0)[7] = True
    measured = measure(a, b, (0.5, 0.7, 3.0))
    for name in DISTANCES:
        assert measured[name] == pytest.approx(5 * (3.0, 0.7, 0.5)[axis], abs=1e-6)


def test_the_mean_is_over_the_voxels_of_both_boundaries():
    """For a plate of 25 voxels and a voxel 4 mm away, it is not the mean of the two means."""
    plate, voxel = np.zeros((2, 7, 5, 5), bool)
    plate[1], voxel[3, 2, 2] = True, True
    y, x = np.mgrid[-2:3, -2:3]
    distances = np.sqrt(4**2 + (0.7 * y) ** 2 + (0.5 * x) ** 2)
    measured = measure(plate, voxel, (0.5, 0.7, 2.0))
    assert measured["average_boundary_distance_mm"] == pytest.approx((distances.sum() + 4) / 26, abs=1e-6)


@pytest.mark.parametrize("swapped", [False, True], ids=["there", "back"])
def test_the_percentile_is_the_larger_of_two(swapped):
    """One way all distances are 0, the other way a tenth is not; the percentile of all distances would be smaller."""
    row, longer = np.zeros((2, 1, 1, 40), bool)
    row[..., :18], longer[..., :20] = True, True
    pair = (longer, row) if swapped else (row, longer)
    # the two largest of twenty distances are 1 and 2 voxels; the percentile lies 5 % of the way between them
    assert measure(*pair, (0.5, 1, 1))["hausdorff_95_mm"] == pytest.approx(0.5 * 1.05, abs=1e-6)


def test_a_hole_has_a_boundary():
    """Distances between boundaries count holes, while distances between all voxels would not."""
    full = np.zeros((13, 13, 13), bool)
    full[1:12, 1:12, 1:12] = True
    hollow = full.copy()
    hollow[6, 6, 6] = False
    # along x, the finest axis, four of the six voxels around the hole are 5 voxels from the surface, and two are 4
    assert hausdorff_distance(full, hollow, (0.5, 1, 3)) == pytest.approx(5 * 0.5)


@pytest.mark.parametrize(
    ("prediction", "reference", "overlap", "distance", "difference"),
    [
        (False, False, math.nan, math.nan, math.nan),
        (False, True, 0, math.inf, -100),
        (True, False, 0, math.inf, math.inf),
    ],
    ids=["both", "prediction", "reference"],
)
def test_empty_masks(prediction, reference, overlap, distance, difference):
    prediction, reference = (np.full((3, 3, 3), filled) for filled in (prediction, reference))
    measured = measure(prediction, reference, (0.5, 1, 2))
    rated = {"dice": overlap, "jaccard": overlap, **dict.fromkeys(DISTANCES, distance)}
    rated |= {"relative_volume_difference_percent": difference}
    rated |= {"absolute_relative_volume_difference_percent": abs(difference)}
    np.testing.assert_equal({name: measured[name] for name in rated}, rated)
    assert measured["prediction_ml"] == pytest.approx(0.027 * prediction.any())
    assert measured["reference_ml"] == pytest.approx(0.027 * reference.any())
    np.testing.assert_equal(hausdorff_distance(prediction, reference, (0.5, 1, 2)), distance)


def test_no_voxels_are_not_rated():
    none = np.zeros((0, 4, 4), bool)
    assert math.isnan(measure(none, none, (1, 1, 1))["dice"])


def test_signed_difference():
    small, large = np.zeros((2, 4, 5, 5), bool)
    small[0], large[:3] = True, True
    too_large, too_small = measure(large, small, (1, 1, 1)), measure(small, large, (1, 1, 1))
    assert too_large["relative_volume_difference_percent"] == pytest.approx(200)
    assert too_small["relative_volume_difference_percent"] == pytest.approx(-200 / 3)
    assert too_small["absolute_relative_volume_difference_percent"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_ordered_and_symmetric(seed):
    a, b, spacing = blob(seed), blob(seed + 100), (0.5, 0.7, 3.0)
    there, back = measure(a, b, spacing), measure(b, a, spacing)
    assert there["hausdorff_mm"] >= there["hausdorff_95_mm"] >= there["average_boundary_distance_mm"] > 0
    for name in DISTANCES:
        assert there[name] == pytest.approx(back[name], abs=1e-12)


@pytest.mark.parametrize("margin", [0, 1, 9])
def test_nothing_depends_on_what_is_around(margin):
    a, b = (np.pad(blob(seed), 1) for seed in (0, 1))
    wide = [np.pad(mask, margin) for mask in (a, b)]
    assert measure(*wide, (0.5, 0.7, 3)) == measure(a, b, (0.5, 0.7, 3))


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.zeros((2, 3, 5), bool), r"prediction must have shape \(2, 3, 4\) to match reference; got \(2, 3, 5\)"),
        (np.zeros((2, 3, 4), np.uint8), "prediction must be a .* array of bool; got uint8"),
        (np.zeros((3, 4), bool), r"prediction must be a \(z, y, x\) array"),
    ],
    ids=["shape", "type", "two axes"],
)
@pytest.mark.parametrize("function", [measure, hausdorff_distance])
def test_masks_that_do_not_fit(function, prediction, message):
    with pytest.raises(ValueError, match=message):
        function(prediction, np.zeros((2, 3, 4), bool), (1, 1, 1))
