"""The CPU's kernel of patches and whole volumes, against the definitions."""

import numpy as np
import pytest
import torch

from tests.ops import test_kernel_patches as of_patches
from tests.ops import test_kernel_transform as of_volumes
from tests.ops.test_kernel_patches import defined, make_inputs, with_channels
from tests.ops.test_kernel_transform import ALL, ALONE, IMAGE_TOLERANCE, OTHER
from vnet_fast.kernels import cpu_library as compiled
from vnet_fast.kernels import cpu_patches as kernels
from vnet_fast.ops import cpu_library, cpu_patches, intensities
from vnet_fast.ops import transform_rows as rows
from vnet_fast.ops.intensities import change_intensities
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform, transform_definition
from vnet_fast.ops.transform_rows import CELLS, GAMMA, INVERTED, MOVED, NOISE, SEED, identity_row

pytestmark = [
    pytest.mark.skipif(cpu_library.library() is None, reason="the CPU's kernels are not compiled"),
    pytest.mark.usefixtures("poisoned_memory"),
]
# of stored volumes, and of a patch
SHAPES = {
    "one voxel": ([(1, 1, 1), (2, 1, 3)], (1, 1, 1)),
    "primes": ([(5, 7, 11), (3, 13, 9)], (2, 5, 7)),
    "one column": ([(9, 8, 1), (7, 11, 2)], (7, 8, 1)),
    "more than a run": ([(9, 31, 40), (12, 23, 37)], (5, 19, 33)),
    "long rows": ([(2, 3, 1100), (2, 2, 1030)], (2, 2, 1027)),
}


def check(library, inputs, patch):
    """Runs the kernel and compares with the definition; returns what it gave."""
    inputs = [tensor.cpu() for tensor in inputs]
    assert kernels.supports(*inputs, patch)
    image, mask = kernels.patches(library, *inputs, patch)
    expected, labels = defined(inputs, patch)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert (image.shape, mask.shape) == (expected.shape, labels.shape)
    tables = inputs[1]
    assert ((image - expected).abs() <= IMAGE_TOLERANCE * (tables.max() - tables.min())).all()
    certain = of_patches.decided(inputs, patch)
    assert certain.float().mean() > 0.8
    assert torch.equal(mask[certain], labels[certain])
    return image, mask


@pytest.mark.parametrize("name", SHAPES)
def test_everything_at_once(name, library):
    shapes, patch = SHAPES[name]
    check(library, make_inputs(shapes, patch, (ALL, OTHER), (True, False)), patch)


@pytest.mark.parametrize("name", ALONE)
def test_one_alone(name, library):
    """What is switched on for one patch changes nothing of the others."""
    shapes, patch = SHAPES["more than a run"]
    image, _ = check(library, make_inputs(shapes, patch, (ALONE[name], {}), (False, False)), patch)
    stayed, _ = defined(make_inputs(shapes, patch, ({}, {}), (False, False)), patch)
    assert torch.equal(image[1], stayed[1])
    assert not torch.equal(image[0], stayed[0])


@pytest.mark.parametrize("channels", [2, 3])
def test_several_channels(channels, library):
    shapes, patch = SHAPES["more than a run"]
    inputs = with_channels(make_inputs(shapes, patch, (ALL, OTHER), (True, False)), channels)
    image, mask = check(library, inputs, patch)
    assert (image.shape, mask.shape) == ((2, channels, *patch), (2, 1, *patch))


@pytest.mark.parametrize("mirrored", ["", "x", "yz", "xyz"])
@pytest.mark.parametrize("name", ["one column", "more than a run"])
def test_crops_are_exact(name, mirrored, library):
    shapes, patch = SHAPES[name]
    inputs = make_inputs(shapes, patch, ({"mirrored": mirrored},) * 2, (False, False))
    for found, expected in zip(check(library, inputs, patch), defined(inputs, patch), strict=True):
        assert torch.equal(found, expected)


def test_a_crop_that_leaves_its_volume_has_its_edge(library):
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, ({}, {}), (False, False))
    # of M, the last column
    inputs[8][:, 3:12:4] += torch.tensor([[5.0, -2, 1], [-7, 3, 2]])
    check(library, inputs, patch)


def test_the_same_bits_for_any_number_of_threads(widest, threads):
    shapes, patch = SHAPES["more than a run"]
    inputs, results = make_inputs(shapes, patch, (ALL, OTHER), (True, False)), []
    for count in (1, 2, 5):
        threads(count)
        results.append(kernels.patches(widest, *inputs, patch))
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, results[0], strict=True))


@pytest.mark.parametrize("labels", [(0, 254, 255), (3, 7, 200)])
def test_labels_are_any_bytes(labels, library, monkeypatch):
    inputs = of_volumes.make_inputs((4, 9, 11), ({"angles": (3, 2, 15)},), (True,))
    certain = of_volumes.decided(inputs[2], inputs, 3)
    _, expected = volumes_by_definition(inputs)
    # as many, in the same order
    bytes_of = torch.tensor(labels, dtype=torch.uint8)
    _, mask = volumes_by(library, monkeypatch, [*inputs[:2], bytes_of[inputs[2].int()], *inputs[3:]])
    assert torch.equal(mask[certain], bytes_of[expected.int()][certain])


def test_of_equal_shares_the_smallest_label_wins(library, monkeypatch):
    inputs = of_volumes.make_inputs((4, 9, 11), ({},), (False,))
    # half a voxel to the right
    inputs[7][0, 3], inputs[7][0, MOVED] = 0.5, 1
    masks = inputs[2]
    _, mask = volumes_by(library, monkeypatch, inputs)
    assert torch.equal(mask[0, 0, ..., :-1], torch.minimum(masks[0, ..., 1:], masks[0, ..., :-1]))


def volumes_by(library, monkeypatch, inputs):
    monkeypatch.setattr(cpu_patches, "library", lambda: library)
    made = cpu_patches.transform(*inputs, dtype=torch.float32)
    assert made is not None
    return made


def volumes_by_definition(inputs, num_classes=3):
    ranks, tables, masks, cases, intensities_of, deformed, points, rows = inputs
    ranks = ranks[cases].int() & 0xFFFF
    return transform_definition(
        ranks, tables[intensities_of], masks[cases], points, deformed.numpy(), rows.numpy(), num_classes
    )


@pytest.mark.parametrize("deformed", [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (3, 9, 1), (3, 5, 7), (4, 13, 30)], ids=str)
def test_whole_volumes(shape, deformed, library, monkeypatch):
    for settings in ((ALL, OTHER), (ALL, {})):
        inputs = of_volumes.make_inputs(shape, settings, deformed)
        (image, mask), (expected, labels) = volumes_by(library, monkeypatch, inputs), volumes_by_definition(inputs)
        assert (image - expected).abs().max() <= IMAGE_TOLERANCE * (inputs[1].max() - inputs[1].min())
        certain = of_volumes.decided(inputs[2][inputs[3]], inputs, 3)
        assert torch.equal(mask[certain], labels[certain])


def of_intensities(library, image, table=None, **columns):
    """The kernel's image of one volume whose ranks are its numbers, and the definition's."""
    row = identity_row(tuple(image.shape))
    for column, value in columns.items():
        row[{"noise": NOISE, "gamma": GAMMA, "inverted": INVERTED}[column]] = value
    row[SEED : SEED + 2] = 65_535, 40_001
    ranks = torch.arange(image.numel()).to(torch.uint16).view(torch.int16)
    table = torch.zeros(65536).index_copy_(0, torch.arange(image.numel()), image.flatten()) if table is None else table
    places, number = torch.tensor([[0, *image.shape]]), torch.zeros(1, dtype=torch.int64)
    found, _ = kernels.patches(
        library, ranks, table[None].contiguous(), torch.zeros(image.numel(), dtype=torch.uint8), places, number, number,
        torch.zeros(1, dtype=torch.bool), torch.zeros(1, 2, 5, 5, 5), torch.from_numpy(row[None]), tuple(image.shape),
    )  # fmt: skip
    return found[0, 0], change_intensities(image, table[0], table[-1], row)


def test_noise_is_the_definitions_to_the_last_digits(library):
    found, expected = of_intensities(library, torch.zeros(33, 41, 47), noise=1.0)
    assert expected.abs().max() > 4
    # the definition rounds a turn to 2e-7 of a radian, and numbers are up to 5.8
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("gamma", [0.1, 0.7, 1.5, 10.0])
@pytest.mark.parametrize("inverted", [0, 1])
def test_gamma_is_the_definitions_to_the_last_digits(gamma, inverted, library):
    # also powers too small for float32
    table = torch.cat([torch.zeros(1), torch.logspace(-30, 0, 65535)])
    found, expected = of_intensities(library, table.view(16, 64, 64), table, gamma=gamma, inverted=inverted)
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=1e-7)
    constant = torch.full((3, 4, 5), -1.5)
    found, _ = of_intensities(library, constant, torch.full((65536,), -1.5), gamma=gamma, inverted=inverted)
    assert torch.equal(found, constant)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e30])
def test_places_that_are_no_numbers_are_read_within_the_volume(wrong, library):
    shapes, patch = SHAPES["more than a run"]
    inputs = make_inputs(shapes, patch, (ALL, {}), (True, False))
    inputs[7][0, :, 2:] = wrong
    inputs[8][1, 5], inputs[8][1, CELLS] = wrong, wrong
    image, _ = kernels.patches(library, *inputs, patch)
    assert image.isfinite().all()


def test_what_is_not_supported():
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    wrong = {
        0: inputs[0][:-1], 1: inputs[1][:, :-1], 2: inputs[2].int(), 3: inputs[3].int(), 4: inputs[4].int(),
        5: inputs[5][:1], 6: inputs[6].int(), 7: inputs[7][:1], 8: inputs[8][:, :-1],
    }  # fmt: skip
    for position, tensor in wrong.items():
        changed = [tensor if n == position else given for n, given in enumerate(inputs)]
        assert not kernels.supports(*changed, patch), position
    assert not kernels.supports(*(tensor.to("meta") for tensor in inputs), patch)
    assert not kernels.supports(*inputs, (2, 0, 7))
    assert not kernels.supports(*inputs, (2, 5, 1 << 15))


@pytest.mark.parametrize(
    ("position", "entry", "value"),
    [(3, 0, -1), (3, 0, 2**40), (3, 1, 10**6), (3, 2, 0), (4, 0, 2), (4, 0, -1), (5, 1, 2), (5, 1, -1)],
)
def test_what_would_be_read_beyond_memory_is_not_supported(position, entry, value):
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    assert kernels.supports(*inputs, patch)
    # of the second case, which is read first, or of an index
    (inputs[position][1] if position == 3 else inputs[position])[entry] = value
    assert not kernels.supports(*inputs, patch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["auto", "onednn", "missing"])
def test_the_operators_run_it_if_they_may(mode, dtype, monkeypatch):
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    volumes = of_volumes.make_inputs((3, 5, 7), (ALL, OTHER), (True, False))
    ran, original = [], kernels.patches
    monkeypatch.setattr(kernels, "patches", lambda *given: ran.append(1) or original(*given))
    if mode == "missing":
        monkeypatch.setattr(cpu_library, "library", lambda: None)
    else:
        monkeypatch.setenv("VNET_FAST_CPU_CONV", mode)
    results = patches(*inputs, patch, of_patches.CLASSES, dtype), transform(*volumes, 3, dtype)
    assert len(ran) == (2 if mode == "auto" else 0)
    expected = defined(inputs, patch), volumes_by_definition(volumes)
    for (image, mask), (wanted, _) in zip(results, expected, strict=True):
        assert (image.dtype, mask.dtype, image.shape) == (dtype, torch.uint8, wanted.shape)
        assert (image.float() - wanted).abs().max() < (1e-3 if dtype == torch.float32 else 0.03)


def test_a_wrong_index_is_the_definitions_error():
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    inputs[4][0] = 7
    with pytest.raises(IndexError, match="7"):
        patches(*inputs, patch, of_patches.CLASSES)


def test_columns_are_those_of_the_rows():
    """The source has numbers of its own for them."""
    source = (compiled.SOURCES / "intensities.h").read_text()
    for name in ("NOISE", "SEED", "BRIGHTNESS", "CONTRAST", "GAMMA", "INVERTED", "FIELDS"):
        assert f"{name} = {getattr(rows, name)}" in source
    assert f"CELLS_COLUMN = {rows.CELLS}" in source
    assert kernels.FIELDS == rows.FIELDS
    assert f"ROUNDS = {intensities.ROUNDS}" in source
    assert np.all([f"{number:#X}".replace("0X", "0x") in source for number in intensities.MULTIPLIERS])
