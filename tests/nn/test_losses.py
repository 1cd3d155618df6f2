import itertools
import warnings

import monai.losses
import pytest
import torch
from monai.utils import LossReduction
from torch.utils._python_dispatch import TorchDispatchMode

from vnet_fast import (
    DiceCELoss,
    DiceFocalLoss,
    DiceLoss,
    GeneralizedDiceLoss,
    TverskyLoss,
    WeightedCrossEntropy,
)
from vnet_fast.ops.dice import DiceOptions, dice_sums

SHAPES = {3: (2, 3, 7), 4: (2, 3, 5, 4), 5: (2, 3, 4, 3, 5)}
REFERENCE = monai.losses.DiceLoss
pytestmark = pytest.mark.filterwarnings("ignore:single channel prediction")


def inputs(shape, seed=0, dtype=torch.float64, labels=False):
    """Logits, and a target of labels or of zeros and ones in every channel."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    high, channels = (shape[1], 1) if labels else (2, shape[1])
    return logits, torch.randint(high, (shape[0], channels, *shape[2:]), generator=generator)


def value_and_gradient(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    # a different factor for each entry, so that a mixed-up reduction shows
    factor = torch.arange(1, value.numel() + 1, dtype=value.dtype).reshape(value.shape)
    (grad,) = torch.autograd.grad((value * factor).sum(), logits)
    return value.detach(), grad


def assert_same(arguments, logits, target, reference_target=None):
    ours = value_and_gradient(DiceLoss(**arguments), logits, target)
    theirs = value_and_gradient(
        REFERENCE(**arguments), logits, target if reference_target is None else reference_target
    )
    assert ours[0].shape == theirs[0].shape
    # MONAI's one-hot is float32, and its norms of it are rounded to that
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if arguments.get("to_onehot_y") else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(ours, theirs, **tolerance)


GRID = list(
    itertools.product(
        (True, False),  # include_background
        ("none", "sigmoid", "softmax", "other"),
        (True, False),  # to_onehot_y
        (True, False),  # squared_pred
        (True, False),  # jaccard
        (True, False),  # batch
        (True, False),  # soft_label
    )
)


SHAPES_AND_REDUCTIONS = [(5, "none"), (5, "mean"), (5, "sum"), (4, "none"), (3, "none")]


@pytest.mark.parametrize(("ndim", "reduction"), SHAPES_AND_REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, 0, 2, -1, 255])
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["every ninth", "all"])
def test_grid_of_options_against_monai(ndim, ignore_index, reduction, step):
    """Combinations of the others, each with one shape and reduction."""
    place, count = SHAPES_AND_REDUCTIONS.index((ndim, reduction)), len(SHAPES_AND_REDUCTIONS)
    for background, activation, onehot, squared, jaccard, batch, soft in GRID[place * step :: count * step]:
        logits, target = inputs(SHAPES[ndim], labels=onehot)
        if onehot and ignore_index in (-1, 255):
            target[:, :, :2] = ignore_index
        for weight in (None, 0.5, [0.2, 0.3, 0.5] if background else [0.4, 0.6]):
            arguments = {
                "include_background": background,
                "to_onehot_y": onehot,
                "sigmoid": activation == "sigmoid",
                "softmax": activation == "softmax",
                "other_act": torch.tanh if activation == "other" else None,
                "squared_pred": squared,
                "jaccard": jaccard,
                "reduction": reduction,
                "batch": batch,
                "weight": weight,
                "soft_label": soft,
                "ignore_index": ignore_index,
            }
            # MONAI can't take the complement of whole numbers
            assert_same(arguments, logits, target if onehot else target.double())


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("jaccard", [True, False])
def test_soft_targets_against_monai(squared, soft, jaccard):
    logits, _ = inputs(SHAPES[5])
    target = torch.rand(SHAPES[5], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    arguments = {"sigmoid": True, "squared_pred": squared, "soft_label": soft, "jaccard": jaccard, "reduction": "none"}
    assert_same(arguments, logits, target)
    assert_same({**arguments, "ignore_index": 1}, logits, target)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float32, torch.float16])
@pytest.mark.parametrize("onehot", [True, False])
@pytest.mark.parametrize("squared", [True, False])
def test_types_of_the_target(dtype, onehot, squared):
    shape = (2, 2, 4, 3, 5)
    logits, target = inputs(shape, labels=onehot)
    arguments = {"softmax": True, "to_onehot_y": onehot, "squared_pred": squared}
    assert_same(arguments, logits, target.to(dtype), target.double())


UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", UNSIGNED, ids=str)
def test_labels_of_every_unsigned_type(dtype):
    """SimpleITK's masks are often uint16."""
    logits, target = inputs((2, 3, 4, 3, 5), labels=True)
    options = {"softmax": True, "to_onehot_y": True}
    losses = [loss(**options) for loss in (DiceLoss, DiceCELoss, DiceFocalLoss, TverskyLoss, GeneralizedDiceLoss)]
    for loss in (*losses, WeightedCrossEntropy()):
        torch.testing.assert_close(
            value_and_gradient(loss, logits, target.to(dtype)), value_and_gradient(loss, logits, target)
        )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_ignoring_in_a_target_of_whole_numbers(dtype):
    logits, target = inputs(SHAPES[5])
    for ignore_index in (1, 7):
        assert_same({"sigmoid": True, "ignore_index": ignore_index}, logits, target.to(dtype), target.double())


@pytest.mark.parametrize("share", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("background", [True, False])
def test_empty_and_full_masks(share, background):
    logits, _ = inputs((2, 2, 4, 3, 5))
    target = torch.full((2, 1, 4, 3, 5), share)
    for smooth in ({}, {"smooth_nr": 0, "smooth_dr": 1e-5}):
        arguments = {"include_background": background, "softmax": True, "to_onehot_y": True, **smooth}
        assert_same({**arguments, "reduction": "none"}, logits, target)


@pytest.mark.parametrize("scale", [1e3, 1e30])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_extreme_logits(scale, activation):
    logits, target = inputs(SHAPES[5])
    assert_same({activation: True, "reduction": "none"}, logits * scale, target.double())


def test_single_channel_warns_as_monai():
    logits, target = inputs((2, 1, 4, 3, 5))
    arguments = {"include_background": False, "softmax": True, "to_onehot_y": True}
    messages = []
    for loss in (DiceLoss(**arguments), REFERENCE(**arguments)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss(logits, target.double())
        messages.append([(str(warning.message), warning.category) for warning in caught])
    assert len(messages[0]) == 3
    assert sorted(messages[0], key=str) == sorted(messages[1], key=str)
    assert_same(arguments, logits, target.double())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"other_act": 1}, TypeError),
        ({"sigmoid": True, "softmax": True}, ValueError),
        ({"sigmoid": True, "other_act": torch.nn.Tanh()}, ValueError),
        ({"reduction": "median"}, ValueError),
    ],
    ids=str,
)
def test_wrong_arguments_raise_as_monai(arguments, error):
    for loss in (DiceLoss, REFERENCE):
        with pytest.raises(error):
            loss(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shape", "error"),
    [
        ({}, (2, 3, 4, 3, 6), AssertionError),
        ({}, (2, 1, 4, 3, 5), AssertionError),
        ({"to_onehot_y": True}, (2, 3, 4, 3, 5), AssertionError),
        ({"weight": [1.0, 2.0]}, (2, 3, 4, 3, 5), ValueError),
        ({"weight": [1.0, -1.0, 1.0]}, (2, 3, 4, 3, 5), ValueError),
        ({"include_background": False, "weight": [1.0, 2.0, 3.0]}, (2, 3, 4, 3, 5), ValueError),
    ],
    ids=str,
)
def test_wrong_inputs_raise_as_monai(arguments, shape, error):
    logits, _ = inputs(SHAPES[5])
    for loss in (DiceLoss(**arguments), REFERENCE(**arguments)):
        with pytest.raises(error):
            loss(logits, torch.zeros(shape))


def test_reduction_changed_later_is_checked():
    loss = DiceLoss()
    loss.reduction = "median"
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum; got 'median'"):
        loss(*[torch.rand(1, 1, 2, 2)] * 2)


def test_positional_arguments_and_enumerations_are_monais():
    positional = (False, True, False, True, None, True, True, "sum", 0.5, 0.25, True, [1.0, 2.0], False, 1)
    logits, target = inputs(SHAPES[5], labels=True)
    ours, theirs = DiceLoss(*positional), REFERENCE(*positional)
    torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    assert DiceLoss(reduction=LossReduction.SUM).reduction == "sum"
    assert ours.state_dict().keys() == theirs.state_dict().keys() == {"class_weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_sum_in_float32(dtype):
    """48³ voxels of foreground are more than float16 can count."""
    logits = torch.full((1, 2, 48, 48, 48), 8.0, dtype=dtype)
    logits[:, 0] = -8
    target = torch.ones(1, 1, 48, 48, 48)
    arguments = {"softmax": True, "to_onehot_y": True, "include_background": False}
    loss = DiceLoss(**arguments)(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), REFERENCE(**arguments)(logits.double(), target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_agree_with_float64(dtype):
    logits, target = inputs((2, 4, 9, 8, 7), dtype=dtype, labels=True)
    value, grad = value_and_gradient(DiceLoss.paper(), logits, target)
    exact_value, exact_grad = value_and_gradient(DiceLoss.paper(), logits.double(), target)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=1e-6)
    assert grad.dtype == dtype
    # the rounding of the result, and that of the sums behind it, which are float32 in every case
    rounding = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
    assert (grad.double() - exact_grad).abs().max() <= rounding * exact_grad.abs().max()


def test_nan_in_gives_nan_out():
    for loss in (DiceLoss(sigmoid=True), DiceLoss.paper()):
        logits = torch.zeros(1, 2, 3, 3, 3)
        logits[0, 1, 0, 0, 0] = torch.nan
        target = torch.zeros(1, 1 if loss.to_onehot_y else 2, 3, 3, 3)
        assert loss(logits, target).isnan()


def test_inputs_are_not_written_to():
    logits, target = inputs(SHAPES[5], labels=True)
    before = logits.clone(), target.clone()
    DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, ignore_index=1)(logits, target)
    DiceLoss(softmax=True, to_onehot_y=True, ignore_index=-1)(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


def test_label_out_of_range_is_an_error():
    with pytest.raises(RuntimeError, match="out of bounds"):
        DiceLoss.paper()(torch.zeros(1, 2, 3, 3, 3), torch.full((1, 1, 3, 3, 3), 2))


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
@pytest.mark.parametrize("labels", [True, False])
def test_gradcheck(labels, activation, squared):
    logits, target = inputs((1, 3, 3, 2, 2), labels=labels)
    options = DiceOptions(activation, labels, squared=squared)
    assert torch.autograd.gradcheck(lambda x: dice_sums(x, target, options), logits.clone().requires_grad_())


@pytest.mark.parametrize("gamma", [None, 1.5])
@pytest.mark.parametrize(("entropy", "smoothed"), [("softmax", False), ("softmax", True), ("sigmoid", False)])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_gradcheck_of_entropies(activation, entropy, smoothed, gamma):
    for labels, ignore_index in ((True, 1), (False, None)):
        logits, target = inputs((1, 3, 3, 2, 2), labels=labels)
        target = target if labels else torch.rand(target.shape, dtype=torch.float64)
        options = DiceOptions(activation, labels, 0, False, False, ignore_index, entropy, gamma, smoothed)
        assert torch.autograd.gradcheck(lambda x, t=target, o=options: dice_sums(x, t, o), logits.requires_grad_())


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_gradient_of_the_gradient(activation):
    logits, target = inputs((1, 3, 2, 2), labels=True)
    loss = DiceLoss(to_onehot_y=True, squared_pred=True, **{activation: True})
    assert torch.autograd.gradgradcheck(lambda x: loss(x, target), logits.clone().requires_grad_())


def test_no_spatial_axis():
    with pytest.raises(ValueError, match=r"input must have shape \(N, C, \*spatial\); got \(2, 3\)"):
        DiceLoss()(torch.zeros(2, 3), torch.zeros(2, 3))


def test_unknown_activation_and_entropy():
    with pytest.raises(ValueError, match="entropy must be one of none, sigmoid, softmax; got 'hinge'"):
        dice_sums(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), DiceOptions(entropy="hinge"))
    with pytest.raises(ValueError, match="first_class must be 0 for an entropy, which counts all classes; got 1"):
        dice_sums(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), DiceOptions(first_class=1, entropy="softmax"))
    with pytest.raises(ValueError, match="activation must be one of none, sigmoid, softmax; got 'relu'"):
        dice_sums(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), DiceOptions("relu"))


def paper_dice(p, g):
    return 2 * (p * g).sum() / ((p * p).sum() + (g * g).sum())


def test_paper_loss_is_one_minus_the_papers_dice():
    logits, target = inputs((3, 2, 6, 5, 4), labels=True)
    p = torch.softmax(logits, 1)[:, 1]
    expected = torch.stack([1 - paper_dice(p[n], target[n, 0].double()) for n in range(3)]).mean()
    torch.testing.assert_close(DiceLoss.paper()(logits, target), expected, rtol=1e-6, atol=1e-6)


def test_gradient_is_the_papers_formula():
    """∂D/∂p_j = 2 (g_j (Σp² + Σg²) - 2 p_j Σpg) / (Σp² + Σg²)²."""
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(1, 1, 5, 6, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    g = (torch.rand(1, 1, 5, 6, 7, generator=generator) > 0.6).double()
    union = (p * p).sum() + (g * g).sum()
    formula = 2 * (g * union - 2 * p * (p * g).sum()) / union**2
    loss = DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=0)(p, g)
    (grad,) = torch.autograd.grad(1 - loss, p)
    torch.testing.assert_close(grad, formula.detach())


class Operators(TorchDispatchMode):
    """Keeps the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss",
    [WeightedCrossEntropy(), DiceLoss.paper(), DiceCELoss(to_onehot_y=True, softmax=True, label_smoothing=0.1)],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_deterministic_loss_can_be_captured(loss, dtype):
    """On a GPU the deterministic gradient of gather, which scatters, reads a number from the device (`item`), as masked
    indices do: a CUDA graph can't be captured of that. On a CPU the same operators are seen.
    """
    logits, target = inputs((2, 3, 4, 3, 5), dtype=dtype, labels=True)
    torch.use_deterministic_algorithms(True)
    try:
        with Operators() as operators:
            value_and_gradient(loss, logits, target.to(torch.uint8))
    finally:
        torch.use_deterministic_algorithms(False)
    assert "dice_sums_backward" in operators.names
    waiting = {"scatter_add", "scatter_add_", "index_put", "index_put_", "index", "nonzero", "_local_scalar_dense"}
    assert not operators.names & waiting
