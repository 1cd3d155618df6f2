import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image, probabilities_on_image
from vnet_fast.io.grid import (
    Grid,
    covered_share,
    covering_size,
    image_on_grid,
    labels_in,
    mask_on_grid,
    working_grid,
)

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
# rotated by 0.3 about x, then by 0.2 about y
TILTED = tuple(
    (
        np.array([[np.cos(0.2), 0, np.sin(0.2)], [0, 1, 0], [-np.sin(0.2), 0, np.cos(0.2)]])
        @ np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    ).ravel()
)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, 1, 0)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def ramp(size=(11, 9, 7)):
    return np.arange(np.prod(size), dtype=np.float32).reshape(size[::-1])


def test_size_is_xyz_and_shape_is_zyx():
    image = make_image(ramp((5, 4, 3)), (0.5, 0.6, 3.0), (10, -20, 30), OBLIQUE)
    grid = Grid.of(image)
    assert grid.size == (5, 4, 3)
    assert grid.shape == sitk.GetArrayViewFromImage(image).shape == (3, 4, 5)
    assert (grid.placement.spacing, grid.placement.origin) == ((0.5, 0.6, 3.0), (10, -20, 30))
    assert Grid.of(grid.image_from(np.zeros(grid.shape))) == grid


@pytest.mark.parametrize("size", [(8, 6, 4), (14, 12, 10), (5, 9, 20)], ids=str)
def test_same_spacing_only_crops_and_pads(size):
    array = ramp() + 1
    image = make_image(array, (2, 2, 3), (5, 6, 7), OBLIQUE)
    on_grid = image_on_grid(image, working_grid(image, (2, 2, 3), size))
    inside = ~np.isnan(on_grid)
    assert inside.sum() == np.prod([min(a, b) for a, b in zip(size, image.GetSize(), strict=True)])
    np.testing.assert_allclose(np.unique(on_grid[inside]), np.unique(on_grid[inside].round()), atol=1e-3)
    # the voxels that are kept form one block of the file
    corner = np.argwhere(inside)[0]
    first = np.argwhere(np.isclose(array, on_grid[tuple(corner)]))[0]
    lengths = [min(n, m) for n, m in zip(array.shape, size[::-1], strict=True)]
    kept = array[tuple(slice(f, f + length) for f, length in zip(first, lengths, strict=True))]
    np.testing.assert_allclose(on_grid[inside], kept.ravel(), atol=1e-3)
    for f, length, n in zip(first, lengths, array.shape, strict=True):
        assert abs((n - length) / 2 - f) <= 0.5


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE, TILTED, SAGITTAL, FLIPPED], ids=str)
def test_working_grid_is_centred_and_upright(direction):
    image = make_image(ramp((20, 30, 10)), (0.5, 0.6, 3), (10, -20, 30), direction)
    grid = working_grid(image, (1, 1, 1.5), (16, 16, 16))

    def centre(of):
        axes = np.array(of.direction).reshape(3, 3)
        return np.array(of.origin) + axes @ ((np.array(of.size) - 1) / 2 * of.spacing)

    np.testing.assert_allclose(centre(grid), centre(Grid.of(image)), atol=1e-6)
    # each axis is nearest to left, posterior, superior
    axes = np.array(grid.direction).reshape(3, 3)
    assert (axes.diagonal() > 0.7).all()


def test_linear_interpolation_of_a_linear_image():
    """A linear function of space survives any linear resampling."""
    image = make_image(ramp((24, 22, 18)), (0.8, 1.1, 2.0), (3, 4, 5), TILTED)
    points = np.array(
        [image.TransformIndexToPhysicalPoint((i, j, k)) for k in range(18) for j in range(22) for i in range(24)]
    )
    coefficients = np.array([1.5, -0.7, 0.3])
    image = Grid.of(image).image_from((points @ coefficients).reshape(18, 22, 24).astype(np.float32))
    grid = working_grid(image, (1, 1, 1.5), (16, 16, 16))
    on_grid = sitk.GetImageFromArray(image_on_grid(image, grid))
    reference = grid.image_from(np.zeros(grid.shape))
    for index in ((0, 0, 0), (15, 0, 7), (8, 8, 8), (15, 15, 15)):
        expected = coefficients @ np.array(reference.TransformIndexToPhysicalPoint(index))
        assert on_grid[index] == pytest.approx(expected, abs=1e-3)


def shapes(size, spacing):
    """Masks of shapes larger than four voxels: an ellipsoid, a box, and two structures that touch."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(3)]) * s
        for axis, (n, s) in enumerate(zip(size[::-1], spacing[::-1], strict=True))
    )
    extent = np.array(size) * spacing
    ellipsoid = (x / (0.3 * extent[0])) ** 2 + (y / (0.25 * extent[1])) ** 2 + (z / (0.3 * extent[2])) ** 2 < 1
    box = (abs(x) < 0.25 * extent[0]) & (abs(y) < 0.2 * extent[1]) & (abs(z) < 0.25 * extent[2])
    return {
        "ellipsoid": ellipsoid.astype(np.uint8),
        "box": box.astype(np.uint8),
        "two": (ellipsoid * np.where(x > 0, 2, 1)).astype(np.uint8),
    }


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


GRIDS = {
    "3mm": ((96, 96, 24), (1.0, 1.0, 3.0)),
    "3.6mm": ((160, 150, 20), (0.5, 0.5, 3.6)),
    "isotropic": ((40, 44, 48), (1.5, 1.5, 1.5)),
    "fine": ((70, 60, 64), (0.9, 1.3, 0.7)),
}
DIRECTIONS = {"oblique": OBLIQUE, "tilted": TILTED, "sagittal": SAGITTAL, "flipped": FLIPPED}


# every combination is tried; the first ring has each grid and each direction once
COMBINATIONS = [
    pytest.param(
        *names,
        id="-".join(names),
        marks=() if names in zip(GRIDS, DIRECTIONS, ["two"] * len(GRIDS), strict=True) else pytest.mark.exhaustive,
    )
    for names in itertools.product(GRIDS, DIRECTIONS, ["ellipsoid", "box", "two"])
]


def resample_and_return(image, probabilities_on):
    """Returns a mask after resampling to the network's grid, as probabilities of three classes, and back."""
    grid = working_grid(image, (1, 1, 1.5), (128, 128, 64))
    on_image = probabilities_on_image(probabilities_on(grid), grid, image)
    np.testing.assert_allclose(on_image.sum(0), 1, atol=1e-5)
    return on_image.argmax(0)


def assert_similar(returned, mask):
    for label in np.unique(mask[mask > 0]):
        assert dice(returned == label, mask == label) >= 0.97


@pytest.mark.parametrize(("kind", "direction", "shape"), COMBINATIONS)
def test_soft_masks_survive_resampling_and_return(kind, direction, shape):
    size, spacing = GRIDS[kind]
    mask = shapes(size, spacing)[shape]
    image = make_image(mask, spacing, (12, -34, 56), DIRECTIONS[direction])

    def shares(grid):
        labels = [image_on_grid(sitk.Cast(image == k, sitk.sitkFloat32), grid) for k in range(3)]
        return np.stack([np.nan_to_num(share, nan=float(k == 0)) for k, share in enumerate(labels)])

    assert_similar(resample_and_return(image, shares), mask)


@pytest.mark.parametrize(
    ("kind", "direction", "shape"), [combination for combination in COMBINATIONS if combination.values[0] != "fine"]
)
def test_labels_survive_resampling_and_return(kind, direction, shape):
    """A perfect prediction on the network's grid gives the mask back, unless the file's grid is finer."""
    size, spacing = GRIDS[kind]
    mask = shapes(size, spacing)[shape]
    image = make_image(mask, spacing, (12, -34, 56), DIRECTIONS[direction])

    def labels(grid):
        on_grid = mask_on_grid(image, grid)
        assert set(np.unique(on_grid)) == set(np.unique(mask))
        return np.stack([(on_grid == k).astype(np.float32) for k in range(3)])

    assert_similar(resample_and_return(image, labels), mask)


def test_thin_structures_survive():
    """A plate of one voxel is kept on a grid of the same spacing, even if it lies between the grid's voxels."""
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[10] = 1
    image = make_image(mask, (1, 1, 1.5))
    on_grid = mask_on_grid(image, working_grid(image, (1, 1, 1.4), (20, 20, 20)))
    assert (on_grid.any(0)).all()


def test_outside_of_the_network_is_background():
    image = make_image(np.ones((30, 30, 30), np.float32))
    grid = working_grid(image, (1, 1, 1), (16, 16, 16))
    probabilities = np.stack([np.zeros((16, 16, 16)), np.ones((16, 16, 16))]).astype(np.float32)
    on_image = probabilities_on_image(probabilities, grid, image)
    assert (on_image.argmax(0) == 1).sum() == 16**3
    assert covered_share(image, grid) == pytest.approx((16 / 30,) * 3)
    assert covering_size(image, grid) == (30, 30, 30)


@pytest.mark.parametrize("seed", range(20))
def test_the_oriented_grid_is_that_of_the_oriented_image(seed):
    generator = np.random.default_rng(seed)
    axes = np.eye(3)[:, generator.permutation(3)] * generator.choice([-1, 1], 3)
    turned, _ = np.linalg.qr(axes + generator.normal(0, 0.3, (3, 3)))
    image = sitk.Image(*generator.integers(1, 9, 3).tolist(), sitk.sitkUInt8)
    image.SetSpacing(generator.uniform(0.1, 3, 3).tolist())
    image.SetOrigin(generator.normal(0, 100, 3).tolist())
    image.SetDirection(turned.ravel().tolist())
    expected, grid = Grid.of(sitk.DICOMOrient(image, "LPS")), Grid.of(image).oriented()
    assert (grid.size, grid.spacing, grid.direction) == (expected.size, expected.spacing, expected.direction)
    np.testing.assert_allclose(grid.origin, expected.origin, rtol=0, atol=1e-10)


def test_slabs_are_parts_of_the_grid():
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0), (7.0, 8.0, 9.0), (0, 0, 1, 1, 0, 0, 0, 1, 0))
    image = grid.image_from(np.arange(120, dtype=np.float32).reshape(6, 5, 4))
    assert grid.slab(2, 5) == Grid.of(image[:, :, 2:5])


def test_labels_in_a_mask():
    array = np.zeros((3, 4, 5), np.uint8)
    assert labels_in(make_image(array)) == [0]
    array[2, 3, 4], array[1, 0, 0], array[0] = 255, 3, 7
    assert labels_in(make_image(array)) == [0, 3, 7, 255]
    assert labels_in(make_image(array)[:, :, :1]) == [7]
