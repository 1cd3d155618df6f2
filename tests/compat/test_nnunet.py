import functools
import itertools
import types

import pytest
import torch
from torch import nn

from vnet_fast.compat import nnunet
from vnet_fast.compat.nnunet import DC_and_CE_loss, MemoryEfficientSoftDiceLoss, SoftDiceLoss
from vnet_fast.ops.dice import dice_sums

SHAPE = (2, 3, 4, 3, 5)
SOFTMAX = functools.partial(torch.softmax, dim=1)


def inputs(shape=SHAPE, form="labels", mask=None, dtype=torch.float64, seed=0):
    """Logits, a target in one of its forms, and a mask or None."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    target = {
        "labels": labels,
        "no channel": labels[:, 0],
        "uint8": labels.to(torch.uint8),
        "float": labels.float(),
        "one-hot": torch.cat([labels == k for k in range(shape[1])], 1),
        "regions": torch.rand(shape, generator=generator) > 0.4,
        "soft": torch.rand(shape, generator=generator, dtype=torch.float64),
    }[form]
    share = torch.rand(labels.shape, generator=generator)
    masks = {None: None, "bool": share > 0.3, "int": (share > 0.3).long(), "weights": share}
    return logits, target, masks[mask]


def formula(probability, target, mask, batch_dice, do_bg, smooth, clip_tp=None):
    """-Dice by loops over volumes and classes, from true and false positives and false negatives."""
    num_volumes, num_classes = probability.shape[:2]
    if target.shape != probability.shape:
        labels = target.reshape(num_volumes, 1, *probability.shape[2:])
        target = torch.cat([labels == k for k in range(num_classes)], 1)
    g = target.double()
    w = torch.ones_like(g[:, :1]) if mask is None else mask.double()
    groups = [range(num_volumes)] if batch_dice else [[n] for n in range(num_volumes)]
    dice = []
    for group in groups:
        for k in range(0 if do_bg else 1, num_classes):
            true = sum((w[n, 0] * probability[n, k] * g[n, k]).sum() for n in group)
            false_positive = sum((w[n, 0] * probability[n, k] * (1 - g[n, k])).sum() for n in group)
            false_negative = sum((w[n, 0] * (1 - probability[n, k]) * g[n, k]).sum() for n in group)
            if clip_tp is not None:
                true = true.clip(min=clip_tp)
            denominator = (2 * true + false_positive + false_negative + smooth).clip(min=1e-8)
            dice.append((2 * true + smooth) / denominator)
    return -torch.stack(dice).mean()


def assert_same(loss, logits, target, mask, tolerance=1e-12):
    """Value and gradient equal the formula's."""
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value = loss(ours, target, mask)
    probability = theirs if loss.apply_nonlin is None else loss.apply_nonlin(theirs)
    expected = formula(probability, target, mask, loss.batch_dice, loss.do_bg, loss.smooth, loss.clip_tp)
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance)
    (grad,) = torch.autograd.grad(value, ours)
    (expected_grad,) = torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mask", [None, "bool", "int", "weights"])
@pytest.mark.parametrize("form", ["labels", "no channel", "uint8", "float", "one-hot", "regions", "soft"])
def test_equals_the_formula(form, mask):
    data = inputs(form=form, mask=mask)
    functions = (SOFTMAX, torch.sigmoid, lambda x: x.square(), None)
    for apply_nonlin, batch_dice, do_bg in itertools.product(functions, (False, True), (False, True)):
        for smooth in (0, 1e-5, 1.0):
            assert_same(SoftDiceLoss(apply_nonlin, batch_dice, do_bg, smooth), *data)


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 4, 5, 6), (3, 2, 1, 1, 1)], ids=str)
def test_other_shapes(shape):
    for mask in (None, "bool"):
        assert_same(SoftDiceLoss(SOFTMAX, do_bg=False), *inputs(shape, mask=mask))


def test_one_class_is_numbers():
    logits, _, mask = inputs((2, 1, 4, 3, 5), mask="bool")
    target = torch.rand_like(logits) > 0.5
    assert_same(SoftDiceLoss(torch.sigmoid, smooth=1e-5), logits, target, mask)


@pytest.mark.parametrize("clip_tp", [0.0, 4.0, 1e3])
def test_clip_tp(clip_tp):
    for mask in (None, "bool"):
        assert_same(SoftDiceLoss(SOFTMAX, smooth=1e-5, clip_tp=clip_tp), *inputs(mask=mask))


def test_defaults_and_order_of_arguments():
    loss = SoftDiceLoss()
    ours = (loss.apply_nonlin, loss.batch_dice, loss.do_bg, loss.smooth, loss.ddp, loss.clip_tp)
    assert ours == (None, False, True, 1.0, True, None)
    loss = MemoryEfficientSoftDiceLoss(torch.sigmoid, True, False, 0.5, False)
    assert (loss.apply_nonlin, loss.batch_dice, loss.do_bg, loss.smooth, loss.ddp) == (
        torch.sigmoid, True, False, 0.5, False,
    )  # fmt: skip


def test_which_functions_are_fused(monkeypatch):
    helpers = types.ModuleType("nnunetv2.utilities.helpers")
    helpers.softmax_helper_dim1 = lambda x: torch.softmax(x, 1)
    monkeypatch.setitem(nnunet.sys.modules, helpers.__name__, helpers)
    softmaxes = [nn.Softmax(1), SOFTMAX, functools.partial(nn.functional.softmax, dim=1), helpers.softmax_helper_dim1]
    others = [nn.Softmax(2), functools.partial(torch.softmax, dim=0), lambda x: torch.softmax(x, 1), torch.tanh]
    expected = {"softmax": softmaxes, "sigmoid": [torch.sigmoid, nn.Sigmoid(), nn.functional.sigmoid]}
    expected |= {None: others, "none": [None]}
    called = []
    monkeypatch.setattr(nnunet, "dice_sums", lambda *given: called.append(given[2]) or dice_sums(*given))
    for name, functions in expected.items():
        for function in functions:
            called.clear()
            SoftDiceLoss(function)(*inputs()[:2])
            assert [options.activation for options in called] == [name or "none"]
    # the fused softmax of ours is that of the function, which is all that tells them apart
    torch.testing.assert_close(SoftDiceLoss(others[2])(*inputs()[:2]), SoftDiceLoss(SOFTMAX)(*inputs()[:2]))


@pytest.mark.parametrize("mask", [None, "bool", "weights"])
def test_half_types_sum_in_float32(mask):
    """48³ voxels are more than float16 can count."""
    shape = (1, 2, 48, 48, 48)
    logits, target, mask = inputs(shape, mask=mask, dtype=torch.float16)
    loss = SoftDiceLoss(SOFTMAX, batch_dice=True)(logits, target, mask)
    assert loss.dtype == torch.float32
    expected = formula(SOFTMAX(logits.double()), target, mask, True, True, 1.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("mask", [None, "bool", "weights"])
@pytest.mark.parametrize("apply_nonlin", [SOFTMAX, torch.sigmoid], ids=["softmax", "sigmoid"])
def test_probabilities_are_float32_for_half_types(apply_nonlin, mask):
    logits, target, mask = inputs(mask=mask, dtype=torch.bfloat16)
    loss = SoftDiceLoss(apply_nonlin, smooth=1e-5)(logits, target, mask)
    expected = formula(apply_nonlin(logits.double()), target, mask, False, True, 1e-5)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_sums_over_processes(monkeypatch):
    """Over those of a batch, and only where both are asked for."""
    calls = []

    def twice_over(sums):
        calls.append(sums.shape)
        return 2 * sums

    logits, target, mask = inputs(mask="bool")
    monkeypatch.setattr(nnunet, "all_reduce_sum", twice_over)
    together = SoftDiceLoss(SOFTMAX, batch_dice=True, smooth=1.0)(logits, target, mask)
    assert calls == [(3, 3)]
    # the other process has the same volumes
    doubled = formula(SOFTMAX(logits.repeat(2, 1, 1, 1, 1)), target.repeat(2, 1, 1, 1, 1), mask.repeat(2, 1, 1, 1, 1),
                      True, True, 1.0)  # fmt: skip
    torch.testing.assert_close(together, doubled, rtol=1e-12, atol=0)
    SoftDiceLoss(SOFTMAX, batch_dice=True, ddp=False)(logits, target, mask)
    SoftDiceLoss(SOFTMAX, batch_dice=False, ddp=True)(logits, target, mask)
    assert calls == [(3, 3)]


def test_absent_class_without_smoothing_is_zero():
    probability = torch.zeros(1, 2, 3, 3, 3)
    probability[:, 0] = 1
    assert SoftDiceLoss(smooth=0)(probability, torch.zeros(1, 1, 3, 3, 3)) == -0.5


def test_inputs_are_not_written_to():
    logits, target, mask = inputs(mask="bool")
    before = [tensor.clone() for tensor in (logits, target, mask)]
    SoftDiceLoss(SOFTMAX)(logits, target, mask)
    assert all(map(torch.equal, before, (logits, target, mask)))


def test_compiles_in_one_graph():
    logits, target, mask = inputs(mask="bool", dtype=torch.float32)
    loss = SoftDiceLoss(SOFTMAX, batch_dice=True, do_bg=False)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target, mask), loss(logits, target, mask))


@pytest.mark.parametrize(
    ("y", "mask", "message"),
    [
        ((2, 2, 4, 3, 5), None, r"y must have shape \(2, 3, 4, 3, 5\) or \(2, 1, 4, 3, 5\) to match x; got \(2, 2, 4,"),
        ((2, 4, 3, 6), None, r"y must have shape .* got \(2, 1, 4, 3, 6\)"),
        ((2, 1, 4, 3, 5), (2, 4, 3, 5), r"loss_mask must have shape \(2, 1, 4, 3, 5\) to match x; got \(2, 4, 3, 5\)"),
    ],
    ids=str,
)
def test_wrong_shapes(y, mask, message):
    with pytest.raises(ValueError, match=message):
        SoftDiceLoss()(torch.zeros(SHAPE), torch.zeros(y), None if mask is None else torch.ones(mask))


def test_no_class_left():
    with pytest.raises(ValueError, match="do_bg must be True for an x of one class"):
        SoftDiceLoss(do_bg=False)(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))


IGNORED = 3
DICE_KWARGS = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}


class AnotherDice(SoftDiceLoss):
    """A class of the Dice loss that is not fused."""


def compound(logits, target, dice_kwargs, ce_kwargs, weight_ce, weight_dice, ignore_label):
    """nnU-Net's loss by its definition: Dice of the voxels that count, and PyTorch's cross-entropy."""
    x, counts = logits.double(), None
    labels = target
    if ignore_label is not None:
        counts = target != ignore_label
        labels = target.where(counts, 0)
        ce_kwargs = {**ce_kwargs, "ignore_index": ignore_label}
    settings = {"batch_dice": False, "do_bg": True, "smooth": 1.0} | dice_kwargs
    dice = formula(torch.softmax(x, 1), labels, counts, settings["batch_dice"], settings["do_bg"], settings["smooth"])
    ce = nn.CrossEntropyLoss(**ce_kwargs)(x, target[:, 0].long())
    return weight_ce * ce + weight_dice * dice


def compound_inputs(ignore_label, dtype=torch.float64):
    logits, target, share = inputs(mask="weights", dtype=dtype)
    if ignore_label is not None:
        target[share < 0.4] = ignore_label
    return logits.requires_grad_(), target


@pytest.mark.parametrize("ignore_label", [None, IGNORED, 0], ids=str)
@pytest.mark.parametrize("dice_class", [SoftDiceLoss, MemoryEfficientSoftDiceLoss, AnotherDice])
@pytest.mark.parametrize("dice_kwargs", [DICE_KWARGS, {}], ids=["trainer", "defaults"])
def test_compound_loss_by_its_definition(monkeypatch, dice_kwargs, dice_class, ignore_label):
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    passes = []
    monkeypatch.setattr(nnunet, "dice_sums", lambda *given: passes.append(given) or dice_sums(*given))
    logits, target = compound_inputs(ignore_label)
    for ce_kwargs in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
        for weights in ((1, 1), (0.3, 2), (0, 1), (1, 0)):
            arguments = dice_kwargs, ce_kwargs, *weights, ignore_label
            passes.clear()
            value = DC_and_CE_loss(*arguments, dice_class)(logits, target)
            assert len(passes) == (1 if dice_class is SoftDiceLoss else sum(weight != 0 for weight in weights))
            expected = compound(logits, target, *arguments)
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
            grads = [torch.autograd.grad(loss, logits)[0] for loss in (value, expected)]
            torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_compound_loss_whose_cross_entropy_ignores_another_label():
    logits, target = compound_inputs(None)
    arguments = DICE_KWARGS, {"ignore_index": 1}, 1, 1, None
    torch.testing.assert_close(DC_and_CE_loss(*arguments)(logits, target), compound(logits, target, *arguments))


def test_compound_loss_of_each_voxel():
    logits, target = compound_inputs(IGNORED)
    arguments = DICE_KWARGS, {"reduction": "none"}, 1, 1, IGNORED
    value = DC_and_CE_loss(*arguments)(logits, target)
    assert value.shape == target[:, 0].shape
    torch.testing.assert_close(value, compound(logits, target, *arguments))


def test_compound_loss_where_everything_is_ignored():
    logits, target = compound_inputs(None)
    for dice_class in (SoftDiceLoss, AnotherDice):
        loss = DC_and_CE_loss(DICE_KWARGS, {}, ignore_label=IGNORED, dice_class=dice_class)
        value = loss(logits, torch.full_like(target, IGNORED))
        # Dice of nothing is 1 with nnU-Net's smoothing
        torch.testing.assert_close(value, torch.tensor(-1.0, dtype=torch.float64))
        assert (torch.autograd.grad(value, logits)[0] == 0).all()


def test_compound_loss_keeps_its_arguments_and_checks_the_target():
    ce_kwargs = {}
    loss = DC_and_CE_loss(DICE_KWARGS, ce_kwargs, 0.5, 2, IGNORED)
    assert ce_kwargs == {}
    assert (loss.weight_ce, loss.weight_dice, loss.ignore_label) == (0.5, 2, IGNORED)
    assert (loss.dc.batch_dice, loss.dc.do_bg, loss.dc.smooth) == (True, False, 1e-5)
    logits, target = compound_inputs(IGNORED, torch.float16)
    assert loss(logits, target).dtype == torch.float32
    with pytest.raises(AssertionError, match=r"target must have shape \(2, 1, 4, 3, 5\) to match net_output"):
        loss(logits, logits)


@pytest.mark.exhaustive
def test_compound_loss_compiles_in_one_graph():
    logits, target = compound_inputs(IGNORED, torch.float32)
    loss = DC_and_CE_loss(DICE_KWARGS, {}, ignore_label=IGNORED)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))
