"""Patches against the transform of the whole volume, of which they are a part; and the operator."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from tests.ops.test_augment import smooth_volume
from tests.ops.test_transform import row_of
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform_definition
from vnet_fast.ops.transform_rows import BRIGHTNESS, CELLS, GAMMA, MOVED

SHAPES = [(6, 14, 11), (9, 12, 17), (8, 10, 10)]
PATCH = (5, 8, 9)
CLASSES = 3


@pytest.fixture(autouse=True, params=["auto", "onednn"], ids=["kernel", "definition"])
def _implementation(request, monkeypatch):
    """By the CPU's kernel where there is one, and by the definition."""
    monkeypatch.setenv("VNET_FAST_CPU_CONV", request.param)


def stored():
    """Ranks, tables and masks of volumes one after the other, and where they lie."""
    ranks, tables, masks, places, first = [], [], [], [], 0
    for seed, shape in enumerate(SHAPES):
        order = smooth_volume(seed, shape).ravel().argsort().argsort().reshape(shape)
        ranks.append((1 + order * (65534 / order.max())).astype(np.uint16))
        tables.append(np.linspace(-2 - seed, 3, 65536, dtype=np.float32))
        masks.append(np.random.default_rng(seed).integers(0, CLASSES, shape).astype(np.uint8))
        places.append([first, *shape])
        first += order.size
    flat = [np.concatenate([volume.ravel() for volume in volumes]) for volumes in (ranks, masks)]
    tensors = [torch.from_numpy(array) for array in (flat[0].view(np.int16), np.stack(tables), flat[1])]
    return *tensors, torch.tensor(places), ranks, masks


def row_at(row, origin):
    """The row of a patch that begins at a voxel (z, y, x) of the output of a row of its volume."""
    row = row.copy()
    matrix = row[:12].reshape(3, 4).astype(np.float64)
    row[3:12:4] += (matrix[:, :3] @ np.array(origin[::-1])).astype(np.float32)
    row[MOVED] = 1
    return row


def made(rows, cases, intensities_of, points=None, shape=PATCH):
    ranks, tables, masks, places, _, _ = stored()
    count = len(cases)
    deformed = torch.full((count,), points is not None)
    points = torch.zeros(count, 2, 5, 5, 5) if points is None else points
    return patches(
        ranks, tables, masks, places, torch.tensor(cases), torch.tensor(intensities_of), deformed, points,
        torch.from_numpy(np.stack(rows)), shape, CLASSES,
    )  # fmt: skip


TURNED = {"angles": (4, -7, 30), "scale": 1.2, "mirrored": "y", "gamma": 1.4, "brightness": 1.1}


@pytest.mark.parametrize(
    "settings", [TURNED, {"factor": 2.5}, TURNED | {"factor": 1.8}], ids=["turned", "coarse", "all"]
)
@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_a_patch_is_a_part_of_the_whole_volume(case, settings):
    """Also where it reaches beyond what a crop would have."""
    _, tables, _, _, ranks, masks = stored()
    row = row_of(SHAPES[case], **settings)
    image, mask = transform_definition(
        torch.from_numpy(ranks[case].astype(np.int32))[None], tables[1][None], torch.from_numpy(masks[case])[None],
        torch.zeros(1, 2, 5, 5, 5), np.zeros(1, bool), row[None], CLASSES,
    )  # fmt: skip
    origins = [(0, 0, 0), tuple(np.array(SHAPES[case]) - PATCH), (1, 2, 1)]
    images, labels = made([row_at(row, origin) for origin in origins], [case] * 3, [1] * 3)
    for found, label, (z, y, x) in zip(images[:, 0], labels[:, 0], origins, strict=True):
        part = slice(z, z + PATCH[0]), slice(y, y + PATCH[1]), slice(x, x + PATCH[2])
        torch.testing.assert_close(found, image[0, 0][part], rtol=0, atol=2e-4)
        assert (label != mask[0, 0][part]).float().mean() < 0.02


@pytest.mark.parametrize("mirrored", ["", "x", "yz"])
def test_a_patch_that_is_not_turned_is_a_crop_to_the_bit(mirrored):
    _, tables, _, _, ranks, masks = stored()
    origins, rows = [(1, 6, 2), (2, 0, 0)], []
    for case, origin in zip((0, 2), origins, strict=True):
        row = row_of(PATCH, mirrored=mirrored)
        row[CELLS : CELLS + 3] = np.array(SHAPES[case][::-1]) - 1
        row[3:12:4] += origin[::-1]
        rows.append(row)
    images, labels = made(rows, [0, 2], [2, 1])
    axes = ["zyx".index(axis) for axis in mirrored]
    for n, (case, table, origin) in enumerate(zip((0, 2), (2, 1), origins, strict=True)):
        part = tuple(slice(first, first + length) for first, length in zip(origin, PATCH, strict=True))
        np.testing.assert_array_equal(labels[n, 0].numpy(), np.flip(masks[case][part], axes))
        expected = tables[table].numpy()[ranks[case][part]]
        np.testing.assert_array_equal(images[n, 0].numpy(), np.flip(expected, axes))


def test_beyond_the_volume_there_is_its_edge():
    _, tables, _, _, ranks, masks = stored()
    row = row_of(PATCH)
    row[CELLS : CELLS + 3] = np.array(SHAPES[0][::-1]) - 1
    row[3:12:4] += (6, -3, 4)
    image, mask = made([row], [0], [0])
    z, y, x = np.ix_(
        *(np.clip(np.arange(n) + o, 0, m - 1) for n, o, m in zip(PATCH, (4, -3, 6), SHAPES[0], strict=True))
    )
    np.testing.assert_allclose(image[0, 0].numpy(), tables[0].numpy()[ranks[0][z, y, x]], atol=1e-4)
    np.testing.assert_array_equal(mask[0, 0].numpy(), masks[0][z, y, x])


def test_a_constant_displacement_is_a_translation():
    points = torch.zeros(1, 2, 5, 5, 5)
    points[0, 0], points[0, 1] = 2, -1
    row = row_at(row_of(SHAPES[1], angles=(0, 0, 20)), (1, 2, 3))
    shifted = row.copy()
    shifted[[3, 7]] += [2, -1]
    (image, mask), (expected, labels) = made([row], [1], [0], points), made([shifted], [1], [0])
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)
    assert (mask != labels).float().mean() < 0.01
    assert not torch.equal(made([row], [1], [0])[0], image)


def joined_channels(arguments):
    """The arguments of two volumes of two channels each: two single ones of one shape, joined."""
    ranks, tables, masks, places, cases, intensities_of, deformed, points, rows, *others = arguments
    ranks = torch.stack([ranks, ranks.flip(0)]).view(2, 2, -1).transpose(0, 1).flatten()
    tables = torch.stack([tables, 2 * tables], 1).flatten(0, 1)
    other = rows.clone()
    other[:, GAMMA], other[:, BRIGHTNESS] = 1.3, 0.9
    rows = torch.stack([rows, other], 1).flatten(0, 1)
    return ranks, tables, masks, places, cases, intensities_of, deformed, points, rows, *others


def test_channels_move_together_and_have_intensities_of_their_own():
    shape, generator = SHAPES[0], torch.Generator().manual_seed(0)
    voxels = int(np.prod(shape))
    ranks = torch.randint(-(2**15), 2**15, (2 * voxels,), generator=generator).to(torch.int16)
    tables = torch.stack([torch.linspace(-2, 3, 65536), torch.linspace(-1, 1, 65536)])
    masks = torch.randint(CLASSES, (2 * voxels,), generator=generator).to(torch.uint8)
    places = torch.tensor([[0, *shape], [voxels, *shape]])
    rows = torch.from_numpy(np.stack([row_at(row_of(shape, **settings), (0, 1, 0)) for settings in (TURNED, {})]))
    points = torch.randn(2, 2, 5, 5, 5, generator=generator)
    choices = torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([True, False]), points
    arguments = ranks, tables, masks, places, *choices, rows, PATCH, CLASSES
    image, mask = patches(*joined_channels(arguments))
    assert image.shape == (2, 2, *PATCH)
    first, labels = patches(*arguments)
    torch.testing.assert_close(image[:, :1], first, rtol=0, atol=1e-6)
    assert torch.equal(mask, labels)
    other = rows.clone()
    other[:, GAMMA], other[:, BRIGHTNESS] = 1.3, 0.9
    second, _ = patches(ranks.flip(0), 2 * tables, *arguments[2:8], other, PATCH, CLASSES)
    torch.testing.assert_close(image[:, 1:], second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_registered_fully(dtype):
    ranks, tables, masks, places, _, _ = stored()
    rows = np.stack([row_at(row_of(SHAPES[case], **TURNED), (0, 1, 0)) for case in (2, 0)])
    points = torch.randn(2, 2, 5, 5, 5, generator=torch.Generator().manual_seed(0))
    arguments = (
        ranks, tables, masks, places, torch.tensor([2, 0]), torch.tensor([1, 2]), torch.tensor([True, False]), points,
        torch.from_numpy(rows), list(PATCH), CLASSES, dtype,
    )  # fmt: skip
    opcheck(torch.ops.vnet_fast.patches.default, arguments)
