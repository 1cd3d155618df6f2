"""The kernel of patches, against its definition."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, MARKS, TYPES, surrounded  # noqa: E402
from tests.ops.test_kernel_transform import ALL, IMAGE_TOLERANCE, OTHER, make_row  # noqa: E402
from tests.ops.test_patches import CLASSES, row_at  # noqa: E402
from vnet_fast.kernels import patches, transform  # noqa: E402
from vnet_fast.ops import patches as operation  # noqa: E402
from vnet_fast.ops.transform_rows import BRIGHTNESS, CELLS, MOVED, NOISE  # noqa: E402

pytestmark = MARKS
ROWS, COLUMNS = transform.TILE
# of stored volumes, and of a patch
SHAPES = {
    "one_voxel": ([(1, 1, 1), (2, 1, 3)], (1, 1, 1)),
    "primes": ([(5, 7, 11), (3, 13, 9)], (2, 5, 7)),
    "one_block_and_one": ([(2, ROWS + 3, COLUMNS + 4), (3, ROWS + 1, COLUMNS + 1)], (2, ROWS + 1, COLUMNS + 1)),
}


def make_inputs(shapes, patch, settings, deformed):
    """What the kernel takes but the type: smooth volumes, one patch of each with its settings, the last one first."""
    generator, ranks, masks, places, first = torch.Generator().manual_seed(0), [], [], [], 0
    for case, shape in enumerate(shapes):
        axes = torch.meshgrid(*(torch.linspace(-1, 1.2, length) for length in shape), indexing="ij")
        wave = torch.sin((case + 2) * sum(axes)) * torch.cos(3 * axes[2])
        ranks.append(((0.5 + 0.49 * wave) * 65535).int().numpy().astype(np.uint16).view(np.int16).ravel())
        masks.append(torch.randint(CLASSES, (wave.numel(),), generator=generator).to(torch.uint8))
        places.append([first, *shape])
        first += wave.numel()
    count = len(shapes)
    tables = torch.linspace(-2, 3, 65536) * torch.linspace(1, 1.5, count)[:, None]
    points = 2 * torch.randn(count, 2, 5, 5, 5, generator=generator)
    deformed = torch.tensor(deformed)
    points[~deformed] = 1e6
    cases = torch.arange(count).flip(0)
    rows = [
        row_at(make_row(shapes[case], **setting), np.array(shapes[case]) - patch)
        for case, setting in zip(cases.tolist(), settings, strict=True)
    ]
    stored = (
        surrounded(tensor.to(DEVICE)) for tensor in (torch.from_numpy(np.concatenate(ranks)), tables, torch.cat(masks))
    )
    choices = torch.tensor(places), cases, torch.arange(count), deformed, points, torch.from_numpy(np.stack(rows))
    return *stored, *(tensor.to(DEVICE) for tensor in choices)


def with_channels(inputs, channels):
    """The same volumes with further channels: other ranks, tables and intensities at the same places."""
    ranks, tables, masks, places, cases, intensities_of, deformed, points, rows = inputs
    parts = []
    for first, *shape in places.tolist():
        volume = ranks[first : first + int(np.prod(shape))]
        parts += [torch.roll(volume, 3 * channel) for channel in range(channels)]
    tables = torch.stack([tables * (1 + channel) - channel for channel in range(channels)], 1).flatten(0, 1)
    rows = rows.repeat_interleave(channels, 0)
    rows[1::channels, BRIGHTNESS], rows[1::channels, NOISE] = 0.8, 0.3
    stored = surrounded(torch.cat(parts)), surrounded(tables), masks
    return *stored, places, cases, intensities_of, deformed, points, rows


def defined(inputs, patch):
    ranks, tables, masks, places, cases, intensities_of, deformed, points, rows = (tensor.cpu() for tensor in inputs)
    on_host = (tensor.numpy() for tensor in (places, cases, intensities_of, deformed))
    return operation.patches_definition(ranks, tables, masks, *on_host, points, rows.numpy(), patch, CLASSES)


def decided(inputs, patch):
    """Where the share of the definition's label is larger than that of any other by 1e-4."""
    _, _, masks, places, cases, intensities_of, *others, rows = inputs
    rows = rows[:: len(rows) // len(cases)].cpu().clone()
    for row, (_, d, h, w) in zip(rows, places[cases].tolist(), strict=True):
        row[CELLS:MOVED] = torch.tensor([w, h, d]) - 1
        row[MOVED + 1 :] = torch.tensor([0, 0, 0, 1, 1, 1, 0])
    ramp = torch.linspace(0, 1, 65536)[None].expand(len(cases), -1).contiguous()
    shares = [
        defined(
            (
                torch.where(masks == label, -1, 0).to(torch.int16),
                ramp,
                masks,
                places,
                cases,
                intensities_of,
                *others,
                rows,
            ),
            patch,
        )[0]
        for label in range(CLASSES)
    ]
    ordered = torch.stack(shares).sort(0).values
    return ordered[-1] - ordered[-2] > 1e-4


def check(inputs, patch, dtype=torch.float32):
    """Runs the kernel and compares with the definition; returns what it gave."""
    assert patches.supports(*inputs, patch, dtype)
    image, mask = patches.patches(*inputs, patch, dtype)
    expected, labels = defined(inputs, patch)
    assert (image.dtype, mask.dtype) == (dtype, torch.uint8)
    assert (image.shape, mask.shape) == (expected.shape, labels.shape)
    tables = inputs[1].cpu()
    allowed = IMAGE_TOLERANCE * (tables.max() - tables.min())
    allowed = allowed + torch.finfo(dtype).eps / 2 * (expected.abs() + allowed)
    assert ((image.cpu().float() - expected).abs() <= allowed).all()
    certain = decided(inputs, patch)
    assert certain.float().mean() > 0.8
    assert torch.equal(mask.cpu()[certain], labels[certain])
    return image, mask


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("primes", torch.float32), ("one_voxel", torch.bfloat16)]
    + [pytest.param(name, dtype.values[0], marks=pytest.mark.exhaustive) for name in SHAPES for dtype in TYPES],
)
def test_everything_at_once(name, dtype):
    shapes, patch = SHAPES[name]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    first = check(inputs, patch, dtype)
    for ours, again in zip(first, patches.patches(*inputs, patch, dtype), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("channels", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_several_channels(channels):
    shapes, patch = SHAPES["primes"]
    inputs = with_channels(make_inputs(shapes, patch, (ALL, OTHER), (True, False)), channels)
    image, mask = check(inputs, patch)
    assert image.shape == (2, channels, *patch)
    assert mask.shape == (2, 1, *patch)
    for wrong in (0, 1, 8):
        changed = [tensor[:-1] if n == wrong else tensor for n, tensor in enumerate(inputs)]
        assert not patches.supports(*changed, patch, torch.float32)


@pytest.mark.parametrize("settings", [{}, {"mirrored": "xz"}], ids=["kept", "mirrored"])
def test_crops_are_exact(settings):
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (settings, settings), (False, False))
    for found, expected in zip(check(inputs, patch), defined(inputs, patch), strict=True):
        assert torch.equal(found.cpu(), expected)


def test_nothing_is_written_beyond_the_outputs(monkeypatch):
    shapes, patch = [(2, 6, 140), (3, 5, 131)], (2, 5, 130)
    inputs = make_inputs(shapes, patch, (ALL, {"noise": 1.0}), (True, False))
    before, buffers, edge = [tensor.clone() for tensor in inputs], [], 4096

    def empty(shape, dtype, device):
        buffers.append(torch.full((2 * edge + int(np.prod(shape)),), 77, dtype=dtype, device=device))
        return buffers[-1][edge:-edge].view(shape)

    monkeypatch.setattr(patches.torch, "empty", empty)
    patches.patches(*inputs, patch, torch.float32)
    monkeypatch.undo()
    assert len(buffers) == 2
    for buffer in buffers:
        assert (buffer[:edge] == 77).all()
        assert (buffer[-edge:] == 77).all()
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True) if not pair[0].is_floating_point())


def test_what_is_not_supported():
    shapes, patch = SHAPES["primes"]
    inputs = make_inputs(shapes, patch, (ALL, OTHER), (True, False))
    wrong = {
        0: inputs[0][:-1], 1: inputs[1][:, :-1], 2: inputs[2].int(), 3: inputs[3].int(), 4: inputs[4].int(),
        5: inputs[5][:1], 6: inputs[6].int(), 7: inputs[7][:1], 8: inputs[8][:, :-1],
    }  # fmt: skip
    for position, tensor in wrong.items():
        changed = [tensor if n == position else given for n, given in enumerate(inputs)]
        assert not patches.supports(*changed, patch, torch.float32), position
    assert not patches.supports(*inputs, patch, torch.float64)
    assert not patches.supports(*inputs, (2, 0, 7), torch.float32)
    assert not patches.supports(*inputs, (2, 5, 1 << 15), torch.float32)
