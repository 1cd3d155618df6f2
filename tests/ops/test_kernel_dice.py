"""The fused Dice kernels, against the definition in float64."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.dice_checks import (  # noqa: E402
    EPSILON,
    LAYOUTS,
    PAPER,
    SIZES,
    TERMS,
    _poisoned_lanes,
    check,
    few_programs,
    in_layout,
    make_channels,
    make_grad_sums,
    make_labels,
    make_logits,
    name_of,
    shape_of,
)
from tests.ops.kernels import DEVICE, INTERPRETED, MARKS, TYPES  # noqa: E402
from vnet_fast.kernels import dice  # noqa: E402
from vnet_fast.ops.dice import DiceOptions, dice_sums  # noqa: E402

__all__ = ["_poisoned_lanes"]
pytestmark = MARKS


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_sizes(dtype, layout, size):
    shape = shape_of(size, layout, dtype)
    check(make_logits(shape, dtype, layout), make_labels(shape), PAPER)


# (D, H, W) before the crop, and where the crop begins and ends along each axis
CROPS = {
    "all sides": ((5, 8, 9), ((1, 4), (2, 7), (1, 8))),
    "rows": ((3, 5, 9), ((0, 3), (0, 5), (2, 9))),
    "columns": ((3, 9, 7), ((0, 3), (3, 8), (0, 7))),
    "slices": ((7, 5, 7), ((2, 5), (0, 5), (0, 7))),
    "a row": ((3, 5, 9), ((1, 2), (2, 3), (1, 8))),
    "a column": ((3, 7, 5), ((0, 3), (1, 6), (2, 3))),
}


def cropped(wide, crop):
    """A view of a part of the volumes, surrounded by NaN or by the largest number, which nothing may read."""
    edge = torch.nan if wide.is_floating_point() else torch.iinfo(wide.dtype).max
    part = wide[(slice(None), slice(None), *(slice(*limits) for limits in crop))]
    inside = part.clone()
    wide.fill_(edge)
    part.copy_(inside)
    return part


@pytest.mark.parametrize(
    "crop", [pytest.param(crop, marks=[pytest.mark.exhaustive] * (crop != "all sides")) for crop in CROPS]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 3])
def test_cropped_volumes(monkeypatch, classes, layout, crop):
    """The logits of volumes whose size is no multiple of 16: the network's are larger."""
    few_programs(monkeypatch, 2)
    whole, where = CROPS[crop]
    logits = cropped(make_logits((2, classes, *whole), torch.float32, layout), where)
    assert not logits.is_contiguous()
    check(logits, make_labels(logits.shape), PAPER)
    channels = make_channels(logits.shape, torch.float32, layout)
    check(logits, channels, DiceOptions(activation="sigmoid", soft=True))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cropped_volumes_of_several_blocks(monkeypatch, layout, dtype):
    few_programs(monkeypatch, 3)
    logits = cropped(make_logits((2, 2, 8, 16, 20), dtype, layout), ((2, 8), (1, 16), (3, 20)))
    target = make_labels(logits.shape, ignore_index=255)
    options = PAPER._replace(ignore_index=255)
    sums, grad = check(logits, target, options)
    # The same sums in the same order. A GPU's compiler lays a block out over its threads by the loads, which differ.
    tolerance = {"rtol": 0, "atol": 0} if INTERPRETED else {}
    dense = torch.empty_like(logits).copy_(logits)
    torch.testing.assert_close(sums, dice.dice_sums(dense, target, options), **tolerance)
    grad_sums = make_grad_sums(logits, 1)
    torch.testing.assert_close(grad, dice.dice_sums_backward(grad_sums, dense, target, options), **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_slices_that_are_further_apart_than_32_bits_count(tmp_path, layout):
    shape, distance = (1, 2, 2, 1, 5), 2**31 + 64
    strides = (2 * distance, 1, distance, 10, 2) if layout == "channels_last" else (0, 2 * distance, distance, 5, 1)
    size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if DEVICE == "cuda":
        memory = torch.empty(size, dtype=torch.bfloat16, device=DEVICE)
    else:
        # a file with holes
        memory = torch.from_numpy(np.memmap(tmp_path / "volume", np.int16, "w+", shape=(size,))).view(torch.bfloat16)
    logits, target = make_logits(shape, torch.bfloat16, layout), make_labels(shape)
    apart = memory.as_strided(shape, strides).copy_(logits)
    for found, expected in zip(check(apart, target, PAPER), check(logits, target, PAPER), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)], ids=name_of
)
def test_numbers_of_classes(dtype, layout, classes):
    for size in ("primes", "one_block_and_one"):
        shape = shape_of(size, layout, dtype, classes)
        check(make_logits(shape, dtype, layout), make_labels(shape), PAPER._replace(first_class=0))


@pytest.mark.parametrize("spatial", [(7,), (5, 7), (3, 5, 7)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "channels"])
def test_spatial_axes(labels, layout, spatial):
    shape = (2, 3, *spatial)
    target = make_labels(shape) if labels else make_channels(shape, torch.float32, layout)
    check(make_logits(shape, torch.float32, layout), target, PAPER._replace(labels=labels))


@pytest.mark.parametrize("first_class", [pytest.param(0, marks=pytest.mark.exhaustive), 1])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "channels"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options(layout, activation, labels, terms, first_class):
    squared, soft = TERMS[terms]
    options = DiceOptions(
        activation=activation,
        labels=labels,
        first_class=first_class,
        squared=squared,
        soft=soft,
        ignore_index=None,
    )
    # channels-last takes two ways: a power of two of classes, and any other number
    for classes in (2, 3) if layout == "channels_last" else (3,):
        shape = (2, classes, 3, 5, 7)
        target = make_labels(shape) if labels else make_channels(shape, torch.float32, layout)
        check(make_logits(shape, torch.float32, layout), target, options)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_programs_that_take_several_blocks(monkeypatch, layout, dtype):
    shape = shape_of("real", layout, dtype)
    logits, target = make_logits(shape, dtype, layout), make_labels(shape)
    few_programs(monkeypatch, 3)
    assert dice.plan_of(logits, target, PAPER).grid == (3, len(logits))
    check(logits, target, PAPER)


@pytest.mark.parametrize("value", [1.0, -0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_of_stride_zero(layout, value):
    shape = (2, 3, 3, 5, 7)
    grad_sums = torch.tensor(value, device=DEVICE).expand(3, 2, 2)
    check(make_logits(shape, torch.float32, layout), make_labels(shape), PAPER, grad_sums)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ground_truth_has_no_gradient(layout):
    shape = (2, 3, 3, 5, 7)
    logits, target = make_logits(shape, torch.float32, layout), make_labels(shape)
    grad_sums = torch.zeros(3, 2, 2, device=DEVICE)
    grad_sums[2] = torch.nan
    assert (dice.dice_sums_backward(grad_sums, logits, target, PAPER) == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_are_bit_equal(layout):
    shape = shape_of("real", layout, torch.bfloat16)
    inputs = make_logits(shape, torch.bfloat16, layout), make_labels(shape), PAPER
    for first, second in zip(check(*inputs), check(*inputs), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_volume_has_the_same_sums_in_any_batch(layout):
    shape = shape_of("real", layout, torch.bfloat16)
    logits, target = make_logits(shape, torch.bfloat16, layout), make_labels(shape)
    batch = dice.dice_sums(logits, target, PAPER)
    assert torch.equal(batch[:, 1:], dice.dice_sums(logits[1:], target[1:], PAPER))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("size", ["primes", "one_block_and_one"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_beside_the_results(monkeypatch, layout, size, classes):
    shape = shape_of(size, layout, torch.float32, classes)
    logits, target, wide = make_logits(shape, torch.float32, layout), make_labels(shape), []

    def between_sevens(tensor):
        wide.append(torch.cat([torch.full_like(tensor[:1], 7), tensor, torch.full_like(tensor[:1], 7)]))
        return wide[-1][1:-1]

    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: between_sevens(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda tensor: between_sevens(empty_like(tensor)))
    sums = dice.dice_sums(logits, target, PAPER)
    grad = dice.dice_sums_backward(torch.ones_like(sums), logits, target, PAPER)
    monkeypatch.undo()
    partials, grads = wide
    assert torch.equal(partials[1:-1].sum(-1), sums)
    assert torch.equal(grads[1:-1], grad)
    for tensor in wide:
        assert (tensor[0] == 7).all()
        assert (tensor[-1] == 7).all()
    assert not sums.isnan().any()
    assert not grad.isnan().any()


MONAI = {
    "paper": {
        "include_background": False,
        "to_onehot_y": True,
        "softmax": True,
        "squared_pred": True,
        "smooth_nr": 0,
        "smooth_dr": 1e-5,
    },
    "softmax": {"to_onehot_y": True, "softmax": True},
    "ignored": {"to_onehot_y": True, "softmax": True, "ignore_index": 255},
    "ignored_class": {"to_onehot_y": True, "softmax": True, "ignore_index": 2},
    "sigmoid": {"sigmoid": True},
    "soft": {"sigmoid": True, "soft_label": True, "include_background": False},
    "jaccard": {"sigmoid": True, "jaccard": True, "squared_pred": True},
}


@pytest.mark.parametrize("arguments", MONAI.values(), ids=MONAI)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_against_monai(layout, arguments):
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    shape = (2, 3, 6, 7, 8)
    labels, ignore_index = "to_onehot_y" in arguments, arguments.get("ignore_index")
    target = make_labels(shape, torch.int64, ignore_index) if labels else make_channels(shape, torch.float32, layout)
    logits = make_logits(shape, torch.float32, layout)
    options = DiceOptions(
        activation="softmax" if "softmax" in arguments else "sigmoid",
        labels=labels,
        first_class=0 if arguments.get("include_background", True) else 1,
        squared="squared_pred" in arguments,
        soft="soft_label" in arguments,
        ignore_index=ignore_index,
    )

    sums = dice.dice_sums(logits, target, options).double().requires_grad_()
    intersection, prediction, ground = sums
    union = 2 * (prediction + ground - intersection) if "jaccard" in arguments else prediction + ground
    fraction = (2 * intersection + arguments.get("smooth_nr", 1e-5)) / (union + arguments.get("smooth_dr", 1e-5))
    loss = (1 - fraction).mean()
    (grad_sums,) = torch.autograd.grad(loss, sums)
    grad = dice.dice_sums_backward(grad_sums.float(), logits, target, options).double()

    exact_logits = logits.double().requires_grad_()
    exact = losses.DiceLoss(**arguments)(exact_logits, target)
    (exact_grad,) = torch.autograd.grad(exact, exact_logits)
    # float32 in each sum, and in the gradient once more
    torch.testing.assert_close(loss, exact, rtol=0, atol=8 * EPSILON)
    torch.testing.assert_close(grad, exact_grad, rtol=0, atol=16 * EPSILON * exact_grad.abs().amax().item())


def supports_cases():
    shape = (2, 3, 3, 4, 5)
    logits = torch.zeros(shape, device=DEVICE)
    last, labels = in_layout(logits, "channels_last"), make_labels(shape)
    wide = torch.zeros(2, 6, 3, 4, 5, device=DEVICE)
    channels, many = {"labels": False}, torch.zeros(1, 33, 1, 1, 2, device=DEVICE)
    yes = {
        "contiguous": (logits, labels, {}),
        "channels_last": (last, labels, {}),
        "half": (last.half(), labels, {}),
        "some_volumes": (last[1:], labels[1:], {}),
        "one_axis": (logits[..., 0, 0].contiguous(), labels[..., 0, 0].contiguous(), {}),
        "most_classes": (many[:, :32].contiguous(), labels[:1, :, :1, :1, :2].contiguous(), {"first_class": 31}),
        "ignored_label": (logits, labels, {"ignore_index": 1}),
        "ignored_no_class": (logits, labels, {"ignore_index": -100}),
        "float_labels": (logits, labels.float(), {}),
        "channels": (logits, logits.bool(), channels),
        "channels_in_last": (last, last.half(), channels),
        "cropped": (torch.zeros(2, 3, 3, 4, 6, device=DEVICE)[..., :5], labels, {}),
        "cropped_in_last": (
            in_layout(torch.zeros(2, 3, 4, 4, 5, device=DEVICE), "channels_last")[:, :, 1:],
            labels,
            {},
        ),
        "channel_slice": (wide[:, :3], labels, {}),
    }
    no = {
        "float64": (logits.double(), labels, {}),
        "integers": (logits.int(), labels, {}),
        "float64_labels": (logits, labels.double(), {}),
        "empty": (logits[:0], labels[:0], {}),
        "no_voxels": (logits[..., :0], labels[..., :0], {}),
        "too_many_classes": (many, labels[:1, :, :1, :1, :2].contiguous(), {}),
        "channel_slice_in_last": (in_layout(wide, "channels_last")[:, :3], labels, {}),
        "every_second": (torch.zeros(2, 3, 3, 4, 10, device=DEVICE)[..., ::2], labels, {}),
        "every_second_in_last": (in_layout(torch.zeros(2, 3, 3, 4, 10), "channels_last")[..., ::2], labels, {}),
        "cropped_labels": (logits, make_labels((2, 3, 3, 4, 6))[..., :5], {}),
        "cropped_one_axis": (torch.zeros(2, 3, 9, device=DEVICE)[..., :5], labels[:, :, 0, 0], {}),
        "expanded": (logits[:1].expand(shape), labels, {}),
        "transposed": (logits.transpose(2, 4), labels.transpose(2, 4).contiguous(), {}),
        "strided_labels": (logits.transpose(3, 4).contiguous(), labels.transpose(3, 4), {}),
        "labels_of_another_size": (logits, labels[..., :4].contiguous(), {}),
        "labels_as_channels": (logits, labels, channels),
        "channels_as_labels": (logits, logits, {}),
        "channels_not_in_last": (last, logits, channels),
        "channels_in_last_alone": (logits, last, channels),
        "ignored_in_channels": (logits, logits, {**channels, "ignore_index": 1}),
        "another_activation": (logits, labels, {"activation": "tanh"}),
        "no_class_left": (logits, labels, {"first_class": 3}),
        "negative_class": (logits, labels, {"first_class": -1}),
    }
    return [pytest.param(case, True, id=name) for name, case in yes.items()] + [
        pytest.param(case, False, id=name) for name, case in no.items()
    ]


@pytest.mark.parametrize(("case", "expected"), supports_cases())
def test_supports(case, expected):
    logits, target, options = case
    assert dice.supports(logits, target, PAPER._replace(**options)) is expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eager_sums_are_launched_at_once_and_have_two_derivatives(through_kernels, layout):
    logits = cropped(make_logits((2, 2, 5, 6, 7), torch.float32, layout), ((1, 4), (0, 5), (1, 7)))
    target, results = make_labels(logits.shape), []
    # float64 runs by definition
    for dtype in (torch.float32, torch.float64):
        leaf = logits.detach().to(dtype).requires_grad_()
        sums = dice_sums(leaf, target, PAPER)
        assert ("_DiceSums" in sums.grad_fn.name()) == (dtype == torch.float32)
        intersection, prediction, ground = sums
        loss = (intersection / (prediction + ground)).sum()
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), leaf)
        results.append([tensor.detach().double() for tensor in (loss, grad, second)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        assert not dice_sums(logits, target, PAPER).requires_grad
