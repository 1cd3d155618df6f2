"""The relatives of the Dice loss, against MONAI's."""

import functools
import itertools
import warnings

import monai.losses
import pytest
import torch
from monai.utils import LossReduction, Weight

import vnet_fast
from tests.nn.test_losses import SHAPES, inputs, value_and_gradient
from vnet_fast import DiceCELoss, DiceFocalLoss, GeneralizedDiceLoss, TverskyLoss
from vnet_fast.nn import overlap

pytestmark = pytest.mark.filterwarnings("ignore:single channel prediction")
NAMES = ("DiceCELoss", "DiceFocalLoss", "TverskyLoss", "GeneralizedDiceLoss")
# MONAI's focal loss, weights of classes and one-hot targets are float32
TOLERANCE = {"rtol": 5e-6, "atol": 1e-6}
SOFTMAX = {"to_onehot_y": True, "softmax": True}
# (include_background, activation, to_onehot_y, batch) of all losses
COMMON = list(itertools.product((True, False), ("none", "sigmoid", "softmax", "other"), (True, False), (True, False)))


def arguments_of(background, activation, onehot, batch):
    return {
        "include_background": background,
        "to_onehot_y": onehot,
        "sigmoid": activation == "sigmoid",
        "softmax": activation == "softmax",
        "other_act": torch.tanh if activation == "other" else None,
        "batch": batch,
    }


def assert_same(name, arguments, logits, target):
    """Value and gradient equal MONAI's."""
    ours, theirs = (
        value_and_gradient(getattr(module, name)(**arguments), logits, target) for module in (vnet_fast, monai.losses)
    )
    for found, expected in zip(ours, theirs, strict=True):
        scale = max(1, expected.abs().max().item())
        torch.testing.assert_close(found / scale, expected / scale, **TOLERANCE, check_dtype=False)


def dice_ce_cases(num_classes, background, onehot):
    """Options of DiceCELoss."""
    weights = (None, torch.linspace(0.2, 1.1, num_classes, dtype=torch.float64))
    for weight, smoothing, squared, jaccard in itertools.product(weights, (0, 0.1), (True, False), (True, False)):
        factors = {"lambda_dice": 0.7, "lambda_ce": 1.3, "label_smoothing": smoothing}
        yield {"weight": weight, "squared_pred": squared, "jaccard": jaccard, **factors}


def dice_focal_cases(num_classes, background, onehot):
    """Options of DiceFocalLoss."""
    counted = num_classes if background or num_classes == 1 else num_classes - 1
    several = [0.2, 0.5, 0.9][:counted]
    for weight, (gamma, alpha), squared in itertools.product(
        (None, 0.5, several if counted > 1 else 0.3),
        ((2.0, None), (1.5, 0.3), (2, several), (0.0, 0.25)),
        (True, False),
    ):
        factors = {"lambda_dice": 0.7, "lambda_focal": 1.3}
        yield {"weight": weight, "gamma": gamma, "alpha": alpha, "squared_pred": squared, **factors}


def tversky_cases(num_classes, background, onehot):
    """Options of TverskyLoss."""
    for soft, ignore_index in itertools.product((True, False), (None, 0, 2, -1, 255)):
        yield {"alpha": 0.3, "beta": 0.8, "soft_label": soft, "ignore_index": ignore_index}


def generalized_dice_cases(num_classes, background, onehot):
    """Options of GeneralizedDiceLoss."""
    for soft, weights in itertools.product((True, False), ("square", "simple", "uniform")):
        yield {"soft_label": soft, "w_type": weights}


CASES = dict(zip(NAMES, (dice_ce_cases, dice_focal_cases, tversky_cases, generalized_dice_cases), strict=True))


def target_of(shape, onehot, arguments, soft):
    """Labels, a third of them ignored where no class is; or channels of zeros and ones, or of numbers between."""
    onehot = onehot and shape[1] > 1
    _, target = inputs(shape, labels=onehot)
    if onehot and arguments.get("ignore_index") in (-1, 255):
        target[:, :, :2] = arguments["ignore_index"]
    if not onehot:
        target = target.double()
        if soft:
            target = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return target


def compare(name, common, ndim, num_classes, reduction, every, first=0):
    """Every so many of the cases of a loss, beginning with one of them."""
    shape = (2, num_classes, *SHAPES[ndim][2:])
    logits, _ = inputs(shape)
    background, _, onehot, _ = common
    for index, case in enumerate(CASES[name](num_classes, background, onehot)):
        if (index + COMMON.index(common)) % every != first:
            continue
        arguments = {**arguments_of(*common), "reduction": reduction, **case}
        for soft in (False,) if onehot or name == "GeneralizedDiceLoss" or "ignore_index" in case else (False, True):
            assert_same(name, arguments, logits, target_of(shape, onehot, arguments, soft))


def reductions_of(name):
    return ("mean", "sum") if name == "DiceCELoss" else ("mean", "sum", "none")


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_options_against_monai(name):
    kinds = itertools.cycle(itertools.product((3, 1, 2), reductions_of(name)))
    for common, (num_classes, reduction) in zip(COMMON, kinds, strict=False):
        compare(name, common, 5, num_classes, reduction, every=7)


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("ndim", [3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_grid_of_options_against_monai(name, ndim, num_classes):
    """Each combination with one shape: sums are over all voxels and classes, whatever the options."""
    shapes = list(itertools.product((3, 4, 5), (1, 2, 3)))
    for common, reduction in itertools.product(COMMON, reductions_of(name)):
        compare(name, common, ndim, num_classes, reduction, len(shapes), first=shapes.index((ndim, num_classes)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_types_of_the_target(name, dtype):
    loss = getattr(vnet_fast, name)
    for onehot in (True, False):
        logits, target = inputs((2, 2, 4, 3, 5), labels=onehot)
        arguments = {"softmax": True, "to_onehot_y": onehot}
        values = [value_and_gradient(loss(**arguments), logits, t) for t in (target.to(dtype), target.double())]
        torch.testing.assert_close(*values, rtol=1e-12, atol=0)


POSITIONAL = {
    "DiceCELoss": (False, True, False, True, None, True, True, "sum", 0.5, 0.25, True,
                   torch.tensor([0.5, 1, 2], dtype=torch.float64), 0.3, 0.6, 0.2),
    "DiceFocalLoss": (False, True, False, True, None, True, True, "sum", 0.5, 0.25, True, 1.5, [1.0, 2.0], 0.3, 0.6,
                      0.4),
    "TverskyLoss": (False, True, False, True, None, 0.3, 0.8, "sum", 0.5, 0.25, True, False, 1),
    "GeneralizedDiceLoss": (False, True, False, True, None, "simple", "sum", 0.5, 0.25, True, True),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_positional_arguments_defaults_and_states_are_monais(name):
    logits, target = inputs(SHAPES[5], labels=True)
    ours, theirs = (getattr(module, name)(*POSITIONAL[name]) for module in (vnet_fast, monai.losses))
    torch.testing.assert_close(ours(logits, target), theirs(logits, target), **TOLERANCE, check_dtype=False)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    probability, target = torch.rand(SHAPES[5]), torch.randint(2, SHAPES[5]).float()
    ours, theirs = (getattr(module, name)() for module in (vnet_fast, monai.losses))
    torch.testing.assert_close(ours(probability, target), theirs(probability, target), **TOLERANCE)


def test_enumerations_are_monais():
    logits, target = inputs(SHAPES[5], labels=True)
    arguments = {"w_type": Weight.SIMPLE, "reduction": LossReduction.SUM, **SOFTMAX}
    assert_same("GeneralizedDiceLoss", arguments, logits, target)
    assert_same("DiceCELoss", {"reduction": LossReduction.SUM, **SOFTMAX}, logits, target)


@pytest.mark.parametrize("name", NAMES)
def test_single_channel_warns_as_monai(name):
    logits, target = inputs((2, 1, 4, 3, 5))
    arguments = {"include_background": False, **SOFTMAX}
    messages = []
    for module in (vnet_fast, monai.losses):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            getattr(module, name)(**arguments)(logits, target.double())
        messages.append(sorted((str(warning.message), str(warning.category)) for warning in caught))
    assert len(messages[0]) >= 3
    assert messages[0] == messages[1]


WRONG_ARGUMENTS = [
    *((name, {"other_act": 1}, TypeError) for name in NAMES),
    *((name, {"sigmoid": True, "softmax": True}, ValueError) for name in NAMES),
    *((name, {"softmax": True, "other_act": torch.nn.Tanh()}, ValueError) for name in NAMES),
    *((name, {"reduction": "median"}, ValueError) for name in NAMES),
    ("DiceCELoss", {"reduction": "none"}, ValueError),
    ("DiceCELoss", {"lambda_dice": -1.0}, ValueError),
    ("DiceCELoss", {"lambda_ce": -1.0}, ValueError),
    ("DiceCELoss", {"weight": [1.0, 2.0]}, TypeError),
    ("DiceFocalLoss", {"lambda_dice": -1.0}, ValueError),
    ("DiceFocalLoss", {"lambda_focal": -1.0}, ValueError),
    ("GeneralizedDiceLoss", {"w_type": "cubic"}, ValueError),
]


@pytest.mark.parametrize(("name", "arguments", "error"), WRONG_ARGUMENTS, ids=str)
def test_wrong_arguments_raise_as_monai(name, arguments, error):
    for module in (vnet_fast, monai.losses):
        with pytest.raises(error):
            getattr(module, name)(**arguments)


WRONG_INPUTS = [
    *((name, {}, (2, 3, 4, 3, 6), AssertionError) for name in NAMES),
    *((name, {}, (2, 1, 4, 3, 5), AssertionError) for name in NAMES),
    *((name, {"to_onehot_y": True}, (2, 3, 4, 3, 5), AssertionError) for name in NAMES),
    *((name, {}, (2, 3, 4, 3), ValueError) for name in NAMES[:2]),
    *((name, {}, (2, 2, 4, 3, 5), ValueError) for name in NAMES[:2]),
    ("DiceCELoss", {"weight": torch.ones(2)}, (2, 3, 4, 3, 5), ValueError),
    ("DiceCELoss", {"weight": -torch.ones(3)}, (2, 3, 4, 3, 5), ValueError),
    ("DiceFocalLoss", {"weight": [1.0, 2.0]}, (2, 3, 4, 3, 5), ValueError),
    ("DiceFocalLoss", {"weight": [1.0, -1.0, 1.0]}, (2, 3, 4, 3, 5), ValueError),
    ("DiceFocalLoss", {"alpha": [1.0, 2.0]}, (2, 3, 4, 3, 5), ValueError),
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", [*NAMES, "DiceLoss"])
def test_an_empty_batch(name, reduction):
    logits, target = torch.zeros(0, 3, 4, 3, 5), torch.zeros(0, 1, 4, 3, 5)
    ours, theirs = (
        getattr(module, name)(**SOFTMAX, reduction=reduction)(logits, target) for module in (vnet_fast, monai.losses)
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize(("name", "arguments", "shape", "error"), WRONG_INPUTS, ids=str)
def test_wrong_inputs_raise_as_monai(name, arguments, shape, error):
    logits, _ = inputs(SHAPES[5], dtype=torch.float32)
    for module in (vnet_fast, monai.losses):
        with pytest.raises(error):
            getattr(module, name)(**arguments)(logits, torch.zeros(shape))


def test_weights_of_one_class_that_counts_raise_as_monai():
    """Dice of a single class takes no notice of them."""
    logits, target = torch.zeros(2, 2, 4, 3), torch.zeros(2, 1, 4, 3)
    background = {"include_background": False, **SOFTMAX}
    for module in (vnet_fast, monai.losses):
        with pytest.raises(RuntimeError):
            module.DiceCELoss(**background, weight=torch.ones(1))(logits, target)
        with pytest.raises(ValueError, match="weight"):
            module.DiceFocalLoss(**background, weight=[1.0])(logits, target)
        with pytest.raises(ValueError, match="negative"):
            module.DiceFocalLoss(sigmoid=True, weight=-1.0)(logits[:, :1], target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_types_compute_in_float32(name, dtype):
    """48³ voxels of foreground are more than float16 can count."""
    logits = torch.full((1, 2, 48, 48, 48), 1.5, dtype=dtype)
    logits[:, 0] = -1.5
    logits[:, :, 0] *= -1
    logits.requires_grad_()
    target = torch.ones(1, 1, 48, 48, 48)
    arguments = {**SOFTMAX, "batch": True}
    loss = getattr(vnet_fast, name)(**arguments)(logits, target)
    assert loss.dtype == torch.float32
    exact = logits.detach().double().requires_grad_()
    expected = getattr(monai.losses, name)(**arguments)(exact, target)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, exact)[0]
    assert grads[0].dtype == dtype
    # the rounding of the result, and that of the float32 behind it
    rounding = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
    error = (grads[0].double() - grads[1]).abs().max()
    # what is too small for float16 becomes 0
    assert error <= rounding * grads[1].abs().max() + torch.finfo(dtype).smallest_normal


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0, 0.1])
def test_cross_entropy_of_extreme_logits(reduction, label_smoothing):
    """A probability of 0 counts only where its class is the target's, or labels are smoothed."""
    logits = torch.tensor([[[0.0, 1, 30], [-torch.inf, 2, 0]]], requires_grad=True)
    loss = DiceCELoss(**SOFTMAX, lambda_dice=0, label_smoothing=label_smoothing, reduction=reduction)
    for target in ([[[0, 1, 1]]], [[[1, 1, 1]]]):
        target = torch.tensor(target)
        value = loss(logits, target)
        expected = torch.nn.functional.cross_entropy(
            logits, target[:, 0], label_smoothing=label_smoothing, reduction=reduction
        )
        torch.testing.assert_close(value, expected)
        assert value.isinf() == (target[0, 0, 0] == 1 or label_smoothing > 0)
        grads = [torch.autograd.grad(loss, logits)[0] for loss in (value, expected)]
        torch.testing.assert_close(*grads)


def test_focal_loss_of_extreme_logits():
    """Where MONAI's is NaN."""
    logits = torch.tensor([[[torch.inf, -torch.inf, 0.0, 2]]], requires_grad=True)
    loss = DiceFocalLoss(sigmoid=True, lambda_dice=0)
    right = loss(logits, torch.tensor([[[1, 0, 1, 0]]]))
    p = torch.sigmoid(torch.tensor([0.0, -2]))
    torch.testing.assert_close(right, ((1 - p).square() * -p.log()).sum() / 4)
    assert torch.autograd.grad(right, logits)[0].isfinite().all()
    assert loss(logits, torch.tensor([[[0, 0, 1, 0]]])).isposinf()


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_voxels(name):
    logits, target = inputs(SHAPES[5], labels=True)
    target[target == 1] = 2
    target[1] = 0
    for arguments in ({}, {"batch": True}, {"include_background": False}):
        assert_same(name, {**SOFTMAX, **arguments}, logits, target)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_gradient(name):
    logits, target = inputs((1, 3, 2, 2), labels=True)
    loss = getattr(vnet_fast, name)(**SOFTMAX)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), logits.clone().requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_is_learnt_has_a_gradient(name):
    logits, target = torch.randn(1, 2, 3, 3, 3), torch.rand(1, 2, 3, 3, 3, requires_grad=True)
    getattr(vnet_fast, name)(softmax=True)(logits, target).backward()
    assert target.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_written_to(name):
    logits, target = inputs(SHAPES[5], labels=True)
    before = logits.clone(), target.clone()
    value_and_gradient(getattr(vnet_fast, name)(**SOFTMAX), logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.exhaustive) for name in NAMES[1:])])
def test_compiles_without_a_break(name):
    logits, target = inputs(SHAPES[5], labels=True, dtype=torch.float32)
    loss = getattr(vnet_fast, name)(**SOFTMAX, include_background=False, batch=True)
    compiled = torch.compile(lambda x, y: loss(x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(compiled, logits, target), value_and_gradient(loss, logits, target))


@pytest.mark.parametrize("loss", [DiceCELoss, DiceFocalLoss, TverskyLoss, GeneralizedDiceLoss], ids=NAMES)
def test_sums_of_a_batch_are_over_all_processes(monkeypatch, loss):
    """Those of the overlap; a mean over voxels is averaged with the gradients."""
    calls = []

    def twice_over(sums):
        calls.append(sums.shape)
        return 2 * sums

    monkeypatch.setattr(overlap, "all_reduce_sum", twice_over)
    logits, target = inputs(SHAPES[5], labels=True)
    make = functools.partial(loss, **SOFTMAX)
    together = make(batch=True)(logits.requires_grad_(), target)
    assert calls == [(3, 3)]
    # a process that validates may be the only one
    with torch.no_grad():
        make(batch=True)(logits, target)
    assert len(calls) == 1
    monkeypatch.undo()
    expected = make(batch=True)(logits.repeat(2, 1, 1, 1, 1), target.repeat(2, 1, 1, 1, 1))
    torch.testing.assert_close(together, expected)
