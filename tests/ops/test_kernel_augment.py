"""The kernel of augmentation, against its definition and SimpleITK."""

import numpy as np
import pytest
import torch

from tests.ops.test_augment import itk_resampled, itk_transform, smooth_volume
from vnet_fast.ops import augment as operation

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, INTERPRETED, MARKS, TYPES, surrounded  # noqa: E402
from vnet_fast.data.intensity import RANK_LEVELS, to_ranks  # noqa: E402
from vnet_fast.kernels import augment  # noqa: E402

pytestmark = MARKS
ROWS, COLUMNS = augment.TILE
SHAPES = {
    "one_voxel": (1, 1, 1),
    "one_slice": (1, 9, 7),
    "one_row": (3, 1, 9),
    "one_column": (3, 9, 1),
    "primes": (3, 5, 7),
    "one_block": (1, ROWS, COLUMNS),
    "one_block_and_one": (2, ROWS + 1, COLUMNS + 1),
    "real": (6, 20, 36),
}
# Of the range of intensities. Positions differ by rounding, by 1e-4 voxels at most.
IMAGE_TOLERANCE = 1e-3
# Between the two largest shares of labels: where they are nearer, rounding may decide.
MASK_MARGIN = 1e-4


def to_bits(ranks):
    """Ranks from 0 to 65535 as the kernel takes them."""
    return torch.from_numpy(ranks.cpu().numpy().astype(np.uint16).view(np.int16))


def make_inputs(shape, labels=(0, 1), cases=(2, 0, 2), deformed=(True, False, True), sigma=3.0, stored=3):
    """What the kernel takes but the type: ranks of the whole range, far displacements where they do not count."""
    generator = torch.Generator().manual_seed(0)
    volumes = len(cases)
    ranks = torch.randint(RANK_LEVELS, (stored, *shape), generator=generator)
    tables = torch.randn(stored, RANK_LEVELS, generator=generator).sort(1).values
    chosen = torch.randint(len(labels), (stored, *shape), generator=generator)
    masks = torch.tensor(labels, dtype=torch.uint8)[chosen]
    intensities_of = torch.randint(stored, (volumes,), generator=generator)
    deformed = torch.tensor(deformed)
    control_points = sigma * torch.randn(volumes, 2, *[augment.CONTROL_POINTS] * 3, generator=generator)
    control_points[~deformed] = 1e6
    ranks, tables, masks = (surrounded(tensor.to(DEVICE)) for tensor in (to_bits(ranks), tables, masks))
    choices = torch.tensor(cases), intensities_of, deformed, control_points
    return ranks, tables, masks, *(tensor.to(DEVICE) for tensor in choices)


def expected_of(inputs, num_classes):
    """The definition's image and mask, on the CPU."""
    ranks, tables, masks, cases, intensities_of, deformed, control_points = (tensor.cpu() for tensor in inputs)
    return operation.augment_definition(
        ranks[cases].int() & 0xFFFF,
        tables[intensities_of],
        masks[cases],
        control_points,
        deformed.numpy(),
        num_classes,
    )


def margins(masks, control_points):
    """(N, D, H, W): how much larger the largest share of a label is than the next one."""
    nothing = torch.zeros_like(masks)
    shares = [
        operation.deform((masks == label).float(), nothing, control_points, num_classes=2)[0]
        for label in masks.unique()
    ]
    shares = torch.stack([*shares, torch.zeros_like(shares[0])]).sort(0).values
    return shares[-1] - shares[-2]


def check(inputs, dtype=torch.float32, num_classes=2):
    """Runs the kernel and compares with the definition; returns what it gave."""
    assert augment.supports(*inputs, dtype)
    image, mask = augment.augment(*inputs, dtype)
    expected, expected_mask = expected_of(inputs, num_classes)
    assert (image.dtype, mask.dtype) == (dtype, torch.uint8)
    assert image.shape == mask.shape == expected.shape
    assert image.is_contiguous()
    assert mask.is_contiguous()

    deformed = inputs[5].cpu()
    ours, our_mask = image.cpu(), mask.cpu()
    assert torch.equal(ours[~deformed], expected[~deformed].to(dtype))
    assert torch.equal(our_mask[~deformed], expected_mask[~deformed])

    expected, expected_mask = expected[deformed], expected_mask[deformed]
    allowed = IMAGE_TOLERANCE * (inputs[1].max() - inputs[1].min()).cpu()
    allowed = allowed + torch.finfo(dtype).eps / 2 * (expected.abs() + allowed)
    assert ((ours[deformed].float() - expected).abs() <= allowed).all()
    differ = our_mask[deformed] != expected_mask
    if differ.any():
        margin = margins(inputs[2][inputs[3]].cpu()[deformed], inputs[6].cpu()[deformed])[:, None]
        assert margin[differ].max() < MASK_MARGIN
        assert differ.float().mean() < 1e-3
    return image, mask


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_shapes(dtype, name):
    check(make_inputs(SHAPES[name]), dtype)


# nothing but the border, a shift by part of a voxel, everywhere beyond the volume
@pytest.mark.parametrize(
    "sigma", [0.3, 15.0, *(pytest.param(sigma, marks=pytest.mark.exhaustive) for sigma in (1e-3, 60.0))]
)
def test_displacements(sigma):
    check(make_inputs((5, 18, 40), sigma=sigma))


@pytest.mark.parametrize(
    "labels",
    [(0, 1), (0, 1, 2, 3), (0, 254, 255)]
    + [pytest.param(labels, marks=pytest.mark.exhaustive) for labels in ((0,), (1,), (1, 2, 3), (0, 3), (0, 1, 255))],
)
def test_labels(labels):
    check(make_inputs((4, 11, 21), labels), num_classes=max(2, *labels) + 1 if max(labels) > 1 else 2)


@pytest.mark.parametrize(
    ("stored", "cases"),
    [(1, (0,)), (1, (0, 0, 0)), (5, (3,)), (2, (1, 0, 1, 1, 0))],
    ids=["one_of_one", "three_of_one", "one_of_five", "five_of_two"],
)
def test_batches(stored, cases):
    for number in range(3):
        deformed = [(index + number) % 3 == 0 for index in range(len(cases))]
        check(make_inputs((2, 7, 9), cases=cases, deformed=deformed, stored=stored))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("deformed", [True, False])
def test_all_or_none_are_deformed(deformed, dtype):
    check(make_inputs((3, 9, 17), deformed=(deformed,) * 3), dtype)


def test_another_number_of_tables_than_of_volumes():
    ranks, tables, masks, cases, _, deformed, control_points = make_inputs((2, 5, 7))
    intensities_of = torch.tensor([0, 1, 0], device=DEVICE)
    check((ranks, tables[:2], masks, cases, intensities_of, deformed, control_points))


@pytest.mark.parametrize("is_deformed", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_every_rank_finds_its_value(is_deformed):
    """Without displacement a deformed volume is the same to the bit."""
    ranks = torch.arange(RANK_LEVELS).reshape(1, 64, 8, 128)
    _, _, masks, *_ = make_inputs((64, 8, 128), labels=(0, 7, 255), stored=1, cases=(0,), deformed=(True,))
    table = torch.randn(1, RANK_LEVELS, generator=torch.Generator().manual_seed(1))
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    deformed = torch.tensor([is_deformed], device=DEVICE)
    points = torch.zeros(1, 2, 5, 5, 5, device=DEVICE)
    bits = to_bits(ranks).to(DEVICE)
    image, mask = augment.augment(bits, table.to(DEVICE), masks, zero, zero, deformed, points, torch.float32)
    assert torch.equal(image.cpu().ravel(), table.ravel())
    assert torch.equal(mask[:, 0], masks)


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_of_equal_shares_the_smallest_label_wins(axes):
    """Halfway between voxels, where every share is a whole number of halves or quarters."""
    inputs = make_inputs((2, 40, 40), labels=(0, 1, 2, 255), cases=(0,), deformed=(True,))
    points = torch.empty_like(inputs[6])
    points[:, 0], points[:, 1] = 0.5 * ("x" in axes), 0.5 * ("y" in axes)
    _, mask = augment.augment(*inputs[:6], points, torch.float32)
    stored = inputs[2][0].long()
    x = range(2) if "x" in axes else [0, 0]
    y = range(2) if "y" in axes else [0, 0]
    corners = [stored[:, j : 39 + j, i : 39 + i] for j in y for i in x]
    share = sum(torch.nn.functional.one_hot(corner, 256) for corner in corners)
    ties = (share == share.amax(-1, keepdim=True)).sum(-1) > 1
    expected = (share * 256 - torch.arange(256, device=DEVICE)).argmax(-1)
    # further on float32 holds the sum of a place and one half, but not what rounding adds to it
    exact = (slice(None), slice(16, None), slice(16, None))
    assert ties[exact].float().mean() > 0.2
    assert torch.equal(mask[0, 0, :, :39, :39][exact].long(), expected[exact])


def test_deformation_is_itks():
    """A volume that is constant towards its border, with the intensities of another one."""
    shape = (12, 30, 26)
    volumes = np.zeros((2, *shape), np.float32)
    for seed, volume in enumerate(volumes):
        volume[4:8, 9:21, 8:18] = np.exp((1 + seed) * smooth_volume(seed)[4:8, 9:21, 8:18])
    ranks, tables = (np.stack(arrays) for arrays in zip(*map(to_ranks, volumes), strict=True))
    masks = (volumes > 1.05).astype(np.uint8)
    points = np.random.default_rng(3).normal(0, 3, (2, 2, 5, 5, 5)).astype(np.float32)
    cases = torch.tensor([0, 1], device=DEVICE)
    stored = (torch.from_numpy(array).to(DEVICE) for array in (ranks.view(np.int16), tables, masks))
    choices = cases, cases.flip(0), torch.ones(2, dtype=torch.bool, device=DEVICE), torch.from_numpy(points).to(DEVICE)
    image, mask = augment.augment(*stored, *choices, torch.float32)
    for n in range(2):
        transform = itk_transform(points[n], shape)
        values = tables[1 - n][ranks[n]]
        theirs = itk_resampled(values, transform)
        np.testing.assert_allclose(image[n, 0].cpu().numpy(), theirs, atol=1e-4 * np.ptp(values))
        share = itk_resampled(masks[n].astype(np.float32), transform)
        decided = np.abs(share - 0.5) > 1e-3
        assert 0 < masks[n].mean() < decided.mean()
        np.testing.assert_array_equal(mask[n, 0].cpu().numpy()[decided], (share > 0.5)[decided])


@pytest.mark.parametrize("deformed", [True, False])
def test_nothing_is_written_beyond_the_outputs(monkeypatch, deformed):
    inputs = make_inputs((2, 9, 150), cases=(0,), deformed=(deformed,))
    buffers, edge = [], 4096

    def empty(shape, dtype, device):
        buffers.append(torch.full((2 * edge + int(np.prod(shape)),), 77, dtype=dtype, device=device))
        return buffers[-1][edge:-edge].view(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        augment.augment(*inputs, torch.float32)
    assert len(buffers) == 2
    for buffer in buffers:
        assert (buffer[:edge] == 77).all()
        assert (buffer[-edge:] == 77).all()


def test_inputs_are_not_written_to():
    inputs = make_inputs((3, 9, 17))
    before = [tensor.clone() for tensor in inputs]
    augment.augment(*inputs, torch.bfloat16)
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


def test_two_runs_are_bit_equal():
    inputs = make_inputs((3, 9, 150), labels=(0, 1, 2, 3))
    for first, second in zip(*(augment.augment(*inputs, torch.bfloat16) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(not INTERPRETED, reason="needs 15 GB of memory, and here only as much of files without content")
@pytest.mark.exhaustive
@pytest.mark.parametrize("deformed", [True, False])
def test_more_than_2_31_stored_voxels(tmp_path, deformed):
    def zeros(name, like, count):
        size = count * like[0].numel()
        return torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=like.dtype).view(-1, *like.shape[1:])

    ranks, tables, masks, cases, intensities_of, *others = make_inputs(
        (2, 4, 2**11), cases=(0,), stored=1, deformed=(deformed,)
    )
    many_ranks, many_masks = (zeros(str(like.dtype), like, 2**17 + 1) for like in (ranks, masks))
    many_tables = zeros("tables", tables, 2**15 + 1)
    assert min(many_ranks[:-1].numel(), many_tables[:-1].numel()) == 2**31
    many_ranks[-1], many_tables[-1], many_masks[-1] = ranks[0], tables[0], masks[0]
    many = many_ranks, many_tables, many_masks, torch.tensor([2**17]), torch.tensor([2**15])
    results = augment.augment(*many, *others, torch.float32)
    expected = augment.augment(ranks, tables, masks, cases, intensities_of, *others, torch.float32)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(INTERPRETED, reason="no CUDA device")
def test_a_graph_takes_new_choices():
    inputs = make_inputs((3, 9, 150))
    augment.augment(*inputs, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = augment.augment(*inputs, torch.bfloat16)
    others = make_inputs((3, 9, 150), cases=(1, 2, 0), deformed=(False, True, True))
    for tensor, other in zip(inputs[3:], others[3:], strict=True):
        tensor.copy_(other)
    graph.replay()
    for ours, expected in zip(captured, augment.augment(*inputs, torch.bfloat16), strict=True):
        assert torch.equal(ours, expected)


def supports_cases():
    names = "ranks", "tables", "masks", "cases", "intensities_of", "deformed", "control_points", "dtype"
    good = dict(zip(names, (*make_inputs((3, 4, 5)), torch.float32), strict=True))
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in good.items()}

    def stored(*shape):
        return {name: torch.empty(3, *shape, dtype=good[name].dtype, device="meta") for name in ("ranks", "masks")}

    yes = {
        "float32": {},
        "float16": {"dtype": torch.float16},
        "bfloat16": {"dtype": torch.bfloat16},
        "two_tables": {"tables": good["tables"][:2]},
        "elsewhere": meta,
        "most_slices": meta | stored(65535, 4, 5),
        "largest_slice": meta | stored(1, 1, 2**31 - 1),
    }
    no = {
        "image_in_float64": {"dtype": torch.float64},
        "image_in_uint8": {"dtype": torch.uint8},
        "uint16": {"ranks": good["ranks"].view(torch.uint16)},
        "int32": {"ranks": good["ranks"].int()},
        "tables_in_half": {"tables": good["tables"].half()},
        "masks_in_int64": {"masks": good["masks"].long()},
        "bool_masks": {"masks": good["masks"].bool()},
        "cases_in_int32": {"cases": good["cases"].int()},
        "intensities_of_in_int32": {"intensities_of": good["intensities_of"].int()},
        "flags_in_uint8": {"deformed": good["deformed"].byte()},
        "control_points_in_float64": {"control_points": good["control_points"].double()},
        "one_volume": {"ranks": good["ranks"][0], "masks": good["masks"][0]},
        "channels": {"ranks": good["ranks"][:, None], "masks": good["masks"][:, None]},
        "masks_of_another_size": {"masks": good["masks"][:, 1:].contiguous()},
        "fewer_masks": {"masks": good["masks"][:2]},
        "short_tables": {"tables": good["tables"][:, 1:].contiguous()},
        "one_table": {"tables": good["tables"][0]},
        "fewer_cases": {"cases": good["cases"][:2]},
        "a_case_without_axis": {"cases": good["cases"][0]},
        "fewer_intensities": {"intensities_of": good["intensities_of"][:2]},
        "fewer_flags": {"deformed": good["deformed"][:2]},
        "fewer_control_points": {"control_points": good["control_points"][:2]},
        "control_points_of_another_mesh": {"control_points": good["control_points"][..., 1:].contiguous()},
        "control_points_of_three_axes": {"control_points": torch.zeros(3, 3, 5, 5, 5, device=DEVICE)},
        "strided_ranks": {"ranks": good["ranks"].transpose(1, 2).contiguous().transpose(1, 2)},
        "strided_tables": {"tables": good["tables"].T.contiguous().T},
        "strided_masks": {"masks": good["masks"].transpose(2, 3).contiguous().transpose(2, 3)},
        "strided_cases": {"cases": good["cases"].repeat_interleave(2)[::2]},
        "strided_intensities_of": {"intensities_of": good["intensities_of"].repeat_interleave(2)[::2]},
        "one_flag_for_all": {"deformed": good["deformed"][:1].expand(3)},
        "strided_control_points": {"control_points": good["control_points"].transpose(3, 4)},
        "no_stored_volume": {"ranks": good["ranks"][:0], "masks": good["masks"][:0]},
        "no_voxels": {name: good[name][:, :0] for name in ("ranks", "masks")},
        "no_tables": {"tables": good["tables"][:0]},
        "no_volumes": {name: good[name][:0] for name in ("cases", "intensities_of", "deformed", "control_points")},
        "flags_elsewhere": {"deformed": meta["deformed"]},
        "too_many_slices": meta | stored(65536, 4, 5),
        "too_large_slices": meta | stored(1, 2, 2**30),
        "too_many_volumes": meta
        | {
            name: torch.empty(65536, *good[name].shape[1:], dtype=good[name].dtype, device="meta")
            for name in ("cases", "intensities_of", "deformed", "control_points")
        },
    }
    return [pytest.param(good | case, True, id=name) for name, case in yes.items()] + [
        pytest.param(good | case, False, id=name) for name, case in no.items()
    ]


@pytest.mark.parametrize(("case", "expected"), supports_cases())
def test_supports(case, expected):
    assert augment.supports(**case) is expected


def test_constants_are_the_definitions():
    """Kernels import nothing of the package, so they have their own."""
    ours = (augment.CONTROL_POINTS, augment.MESH, augment.DOMAIN_MARGIN, augment.RANK_LEVELS)
    assert ours == (augment.CONTROL_POINTS, augment.MESH, augment.DOMAIN_MARGIN, RANK_LEVELS)
