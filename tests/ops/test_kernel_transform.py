"""The kernel of transforms, against its definition."""

import numpy as np
import pytest
import torch

from tests.ops.test_transform import row_of
from vnet_fast.ops import transform as operation
from vnet_fast.ops import transform_rows

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, INTERPRETED, MARKS, TYPES, surrounded  # noqa: E402
from vnet_fast.kernels import transform  # noqa: E402

pytestmark = MARKS
ROWS, COLUMNS = transform.TILE
SHAPES = {
    "one_voxel": (1, 1, 1),
    "one_row": (3, 1, 9),
    "one_column": (3, 9, 1),
    "primes": (3, 5, 7),
    "one_block": (1, ROWS, COLUMNS),
    "one_block_and_one": (2, ROWS + 1, COLUMNS + 1),
}
ALL = {
    "angles": (10, 20, -30), "scale": 0.8, "mirrored": "x", "factor": 1.6, "noise": 0.3, "seed": (64_321, 40_000),
    "brightness": 1.2, "contrast": 1.2, "gamma": 0.7, "inverted": 1,
}  # fmt: skip
OTHER = ALL | {"seed": (1, 2), "contrast": 0.8, "gamma": 1.4, "inverted": 0}
# of one volume each, beside volumes that are deformed, mirrored, and left as they are
ALONE = {
    "rotated": {"angles": (0, 0, 25)},
    "tilted": {"angles": (20, -15, 0)},
    "scaled": {"scale": 1.3},
    "mirrored": {"mirrored": "yz"},
    "coarse": {"factor": 2.5},
    "noisy": {"noise": 0.5, "seed": (9, 65_535)},
    "bright": {"brightness": 1.25},
    "contrast": {"contrast": 0.75},
    "more_contrast": {"contrast": 1.25},
    "gamma": {"gamma": 1.5},
    "inverted": {"gamma": 0.7, "inverted": 1},
}
# Of the range of intensities. Places differ by rounding, by 1e-5 voxels at most, and logarithms by some digits more.
IMAGE_TOLERANCE = 1e-4


def make_row(shape, seed=(0, 0), **settings):
    row = row_of(shape, **settings)
    row[transform_rows.SEED : transform_rows.SEED + 2] = seed
    return row


def make_inputs(shape, settings, deformed, labels=(0, 1, 2)):
    """What the kernel takes but the type: a smooth volume for each of `settings`; unused displacements are far."""
    generator = torch.Generator().manual_seed(0)
    count = len(settings)
    places = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1.2, length) for length in shape), indexing="ij"))
    waves = torch.stack([torch.sin((case + 2) * places.sum(0)) * torch.cos(3 * places[2]) for case in range(count)])
    ranks = ((0.5 + 0.49 * waves) * 65535).int().numpy().astype(np.uint16).view(np.int16)
    tables = torch.linspace(-2, 3, 65536) * torch.linspace(1, 1.5, count + 1)[:, None]
    chosen = torch.randint(len(labels), (count, *shape), generator=generator)
    masks = torch.tensor(labels, dtype=torch.uint8)[chosen]
    deformed = torch.tensor(deformed)
    control_points = 2 * torch.randn(count, 2, 5, 5, 5, generator=generator)
    control_points[~deformed] = 1e6
    rows = torch.from_numpy(np.stack([make_row(shape, **setting) for setting in settings]))
    stored = (surrounded(tensor.to(DEVICE)) for tensor in (torch.from_numpy(ranks), tables, masks))
    choices = torch.arange(count).flip(0), torch.arange(count) + 1, deformed, control_points, rows
    return *stored, *(tensor.to(DEVICE) for tensor in choices)


def decided(masks, inputs, num_classes):
    """(N, 1, D, H, W): where the share of the definition's label is larger than that of any other by 1e-4."""
    *_, deformed, control_points, rows = (tensor.cpu() for tensor in inputs)
    margins = []
    for mask, is_deformed, points, row in zip(masks, deformed, control_points, rows.numpy(), strict=True):
        row = row.copy()
        row[transform_rows.CELLS : transform_rows.MOVED] = np.array(mask.shape[::-1]) - 1
        points = points if is_deformed else None
        shares = [operation.move((mask == k).float(), mask, points, row, num_classes)[0] for k in range(num_classes)]
        shares = torch.stack(shares).sort(0).values
        margins.append(shares[-1] - shares[-2])
    return torch.stack(margins)[:, None] > 1e-4


def check(inputs, dtype=torch.float32, num_classes=3):
    """Runs the kernel and compares with the definition; returns what it gave."""
    assert transform.supports(*inputs, dtype)
    image, mask = transform.transform(*inputs, dtype)
    ranks, tables, masks, cases, intensities_of, deformed, control_points, rows = (tensor.cpu() for tensor in inputs)
    expected, expected_mask = operation.transform_definition(
        ranks[cases].int() & 0xFFFF, tables[intensities_of], masks[cases], control_points, deformed.numpy(),
        rows.numpy(), num_classes,
    )  # fmt: skip
    assert (image.dtype, mask.dtype) == (dtype, torch.uint8)
    assert image.shape == mask.shape == expected.shape
    allowed = IMAGE_TOLERANCE * (tables.max() - tables.min())
    allowed = allowed + torch.finfo(dtype).eps / 2 * (expected.abs() + allowed)
    assert ((image.cpu().float() - expected).abs() <= allowed).all()
    certain = decided(masks[cases], inputs, num_classes)
    assert certain.float().mean() > 0.8
    assert torch.equal(mask.cpu()[certain], expected_mask[certain])
    return image, mask


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("primes", torch.float32), ("one_voxel", torch.bfloat16)]
    + [pytest.param(name, dtype.values[0], marks=pytest.mark.exhaustive) for name in SHAPES for dtype in TYPES],
)
def test_everything_at_once(name, dtype):
    inputs = make_inputs(SHAPES[name], (ALL, OTHER), (True, False))
    first = check(inputs, dtype)
    for ours, again in zip(first, transform.transform(*inputs, dtype), strict=True):
        assert torch.equal(ours, again)


@pytest.mark.parametrize("name", ALONE)
def test_one_alone(name):
    """What is switched on for one volume changes nothing of the others."""
    image, mask = check(make_inputs((2, 3, 7), (ALONE[name], {}), (False, False)))
    ranks, tables, masks, cases, intensities_of, *_ = make_inputs((2, 3, 7), ({}, {}), (False, False))
    stayed = tables[intensities_of[1]][ranks[cases[1]].int() & 0xFFFF]
    assert torch.equal(image[1, 0], stayed)
    assert torch.equal(mask[1, 0], masks[cases[1]])
    assert not torch.equal(image[0, 0], tables[intensities_of[0]][ranks[cases[0]].int() & 0xFFFF])


def test_mirrors_are_exact():
    inputs = make_inputs((2, 5, 9), ({"mirrored": "xz"},), (False,), labels=(0, 7, 255))
    image, mask = transform.transform(*inputs, torch.float32)
    ranks, tables, masks, *_ = inputs
    assert torch.equal(image[0, 0], tables[1][ranks[0].int() & 0xFFFF].flip(0, 2))
    assert torch.equal(mask[0, 0], masks[0].flip(0, 2))


@pytest.mark.parametrize("labels", [(0, 254, 255), pytest.param((3,), marks=pytest.mark.exhaustive)])
def test_labels_are_any_bytes(labels):
    check(make_inputs((2, 5, 9), ({"angles": (3, 2, 15)},), (True,), labels), num_classes=256)


def test_nothing_is_written_beyond_the_outputs(monkeypatch):
    inputs = make_inputs((2, 5, 130), (ALL, {"noise": 1.0}), (True, False))
    before = [tensor.clone() for tensor in inputs]
    buffers, edge = [], 4096

    def empty(shape, dtype, device):
        buffers.append(torch.full((2 * edge + int(np.prod(shape)),), 77, dtype=dtype, device=device))
        return buffers[-1][edge:-edge].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        transform.transform(*inputs, torch.float32)
    assert len(buffers) == 2
    for buffer in buffers:
        assert (buffer[:edge] == 77).all()
        assert (buffer[-edge:] == 77).all()
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.exhaustive
@pytest.mark.skipif(not INTERPRETED, reason="needs 15 GB of memory, and here only as much of files without content")
def test_more_than_2_31_stored_voxels(tmp_path):
    ranks, tables, masks, _, _, *others = make_inputs((2, 4, 2**11), (ALL,), (True,))
    numbers = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    expected = transform.transform(ranks, tables, masks, *numbers, *others, torch.float32)

    def stretched(name, like, count):
        size = (count + 1) * like[0].numel()
        many = torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=like.dtype)
        many = many.view(-1, *like.shape[1:])
        many[-1] = like[-1]
        return many

    last = torch.tensor([2**17]), torch.tensor([2**15])
    many = stretched("ranks", ranks, 2**17), stretched("tables", tables, 2**15), stretched("masks", masks, 2**17)
    for ours, theirs in zip(transform.transform(*many, *last, *others, torch.float32), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(INTERPRETED, reason="no CUDA device")
def test_a_graph_takes_new_rows():
    inputs = make_inputs((3, 9, 150), (ALL, {}), (True, False))
    transform.transform(*inputs, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = transform.transform(*inputs, torch.bfloat16)
    others = make_inputs((3, 9, 150), ({"mirrored": "y", "gamma": 1.3}, ALL), (False, True))
    for tensor, other in zip(inputs[3:], others[3:], strict=True):
        tensor.copy_(other)
    graph.replay()
    for ours, expected in zip(captured, transform.transform(*inputs, torch.bfloat16), strict=True):
        assert torch.equal(ours, expected)


def supports_cases():
    names = "ranks", "tables", "masks", "cases", "intensities_of", "deformed", "control_points", "transforms", "dtype"
    good = dict(zip(names, (*make_inputs((3, 4, 5), ({}, {}), (True, False)), torch.float32), strict=True))
    rows = good["transforms"]
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in good.items()}

    def stored(*shape):
        return meta | {
            name: torch.empty(2, *shape, dtype=good[name].dtype, device="meta") for name in ("ranks", "masks")
        }

    yes = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "elsewhere": meta, "longest_axis": stored(1, 1, 2**14)}
    no = {
        "image_in_float64": {"dtype": torch.float64},
        "what_augment_refuses": {"masks": good["masks"].long()},
        "rows_in_float64": {"transforms": rows.double()},
        "rows_of_other_columns": {"transforms": rows[:, 1:].contiguous()},
        "fewer_rows": {"transforms": rows[:1]},
        "one_row_for_all": {"transforms": rows[:1].expand(2, -1)},
        "rows_elsewhere": {"transforms": meta["transforms"]},
        "too_long_an_axis": stored(1, 2**14 + 1, 1),
    }
    return [pytest.param(good | case, True, id=name) for name, case in yes.items()] + [
        pytest.param(good | case, False, id=name) for name, case in no.items()
    ]


@pytest.mark.parametrize(("case", "expected"), supports_cases())
def test_supports(case, expected):
    assert transform.supports(**case) is expected


def test_columns_are_the_definitions():
    """Kernels import nothing of the package, so they have their own."""
    columns = {name: getattr(transform_rows, name) for name in transform.ROW_COLUMNS}
    assert columns == transform.ROW_COLUMNS
    assert transform_rows.FIELDS == transform.ROW_LENGTH
