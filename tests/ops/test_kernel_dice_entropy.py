"""The entropies that the fused Dice kernels add to their sums, against the definition in float64."""

import itertools

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.dice_checks import (
    LAYOUTS,
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
from tests.ops.kernels import DEVICE, MARKS, TYPES, surrounded
from vnet_fast.kernels import dice
from vnet_fast.ops.dice import DiceOptions, dice_sums, dice_sums_definition

__all__ = ["_poisoned_lanes"]
pytestmark = MARKS
SHAPE = (2, 3, 3, 5, 7)
CE = DiceOptions("softmax", labels=True, entropy="softmax")
ENTROPIES = {
    "cross-entropy": CE,
    "smoothed": CE._replace(smoothed=True),
    "focal of a softmax": CE._replace(gamma=2.0),
    "binary": CE._replace(entropy="sigmoid"),
    "focal": CE._replace(entropy="sigmoid", gamma=2.0),
}
# every exponent of its own code, and one that needs an exponential
GAMMAS = [0.0, 0.5, 1.0, 2.5, 3.0]


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TYPES)
def test_sizes(dtype, layout, entropy):
    for size, classes in (("one_voxel", 3), ("primes", 2), ("one_block_and_one", 3)):
        shape = shape_of(size, layout, dtype, classes)
        check(make_logits(shape, dtype, layout), make_labels(shape), ENTROPIES[entropy])


# of the target: whether it holds labels, and the one that is ignored
TARGETS = [(True, None), (True, 1), (False, None), (True, 255)]
TERMS = [{}, {"squared": True}, {"soft": True}]
OPTIONS = list(itertools.product(ENTROPIES, LAYOUTS, ("softmax", "sigmoid", "none"), TERMS))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("options", "target"), list(zip(OPTIONS, itertools.cycle(TARGETS), strict=False)), ids=str)
def test_options(options, target):
    """Every entropy with every form of the Dice sums; what does not depend on each other varies together."""
    (entropy, layout, activation, terms), (labels, ignore_index) = options, target
    options = ENTROPIES[entropy]._replace(activation=activation, labels=labels, ignore_index=ignore_index, **terms)
    for classes in (1, 2, 3):
        shape = (2, classes, 3, 5, 7)
        target = (
            make_labels(shape, ignore_index=ignore_index) if labels else make_channels(shape, torch.float32, layout)
        )
        check(make_logits(shape, torch.float32, layout), target, options)


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "channels"])
@pytest.mark.parametrize("entropy", ENTROPIES)
def test_some_options(entropy, labels):
    """A few of `test_options`: the targets are soft, or a third of the labels is ignored."""
    ignore_index = 255 if labels else None
    options = ENTROPIES[entropy]._replace(activation="sigmoid", squared=True, labels=labels, ignore_index=ignore_index)
    target = make_labels(SHAPE, ignore_index=ignore_index) if labels else make_channels(SHAPE, torch.float32)
    check(make_logits(SHAPE, torch.float32), target, options)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("entropy", ["softmax", "sigmoid"])
def test_exponents(entropy, gamma):
    check(make_logits(SHAPE, torch.float32), make_labels(SHAPE), CE._replace(entropy=entropy, gamma=gamma))


@pytest.mark.parametrize("classes", [1, 5, 32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_classes(layout, classes):
    shape = (2, classes, 3, 5, 7)
    for entropy in ("smoothed", "focal"):
        check(make_logits(shape, torch.bfloat16, layout), make_labels(shape), ENTROPIES[entropy])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_programs_that_take_several_blocks(monkeypatch, layout):
    shape = shape_of("real", layout, torch.float32, 3)
    logits, target = make_logits(shape, torch.float32, layout), make_labels(shape, ignore_index=255)
    few_programs(monkeypatch, 3)
    check(logits, target, ENTROPIES["smoothed"]._replace(ignore_index=255))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered")
@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("dtype", TYPES)
def test_probabilities_near_0_and_1(dtype, entropy):
    """Logits far apart, and infinite ones; a probability of 0 counts only where its class is the target's."""
    logits, target = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    logits[:, :, 0] *= 30
    logits[:, :, 1] *= 6e3
    # the first voxels have the classes 0, 1 and 2
    target[:, 0, 2, 0, :3] = torch.arange(3, dtype=target.dtype, device=DEVICE)
    logits[0, 0, 2, 0, :3] = -torch.inf
    logits[0, 2, 2, 0, 1] = -torch.inf
    options = ENTROPIES[entropy]
    sums, grad = check(surrounded(logits.to(dtype)), target, options)
    # the target of one voxel has the probability 0, and of no other
    assert sums[3, 0].isposinf().tolist() == [True, False, False]
    assert sums[3, 1].isfinite().all()
    assert grad.isfinite().all()
    if entropy == "cross-entropy":
        # in two volumes, certain and right everywhere
        certain = 1e4 * (target == torch.arange(3, device=DEVICE).reshape(3, 1, 1, 1)).to(dtype)
        sums, grad = check(surrounded(certain), target, options)
        assert (sums[3] == 0).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
@pytest.mark.parametrize("entropy", ENTROPIES)
def test_nan_goes_where_the_definition_has_it(entropy):
    logits, target = make_logits(SHAPE, torch.float32), make_labels(SHAPE, ignore_index=255)
    place = (target[0, 0] != 255).nonzero()[0].tolist()
    logits[0, 1, place[0], place[1], place[2]] = torch.nan
    options = ENTROPIES[entropy]._replace(ignore_index=255)
    sums, _ = check(logits, target, options)
    assert sums[3:, 0].isnan().any()
    assert not sums[:, 1].isnan().any()


def test_smallest_entropies_keep_their_digits():
    """-log p of a probability near 1 is not the logarithm of a number that was rounded to 1."""
    logits = torch.full((1, 1, 2, 3, 4), 12.0, device=DEVICE)
    target = torch.ones(1, 1, 2, 3, 4, device=DEVICE)
    sums = dice.dice_sums(logits, target, DiceOptions("sigmoid", entropy="sigmoid"))
    expected = 24 * torch.log1p(torch.exp(torch.tensor(-12.0, dtype=torch.float64)))
    torch.testing.assert_close(sums[3, 0, 0].double().cpu(), expected, rtol=1e-6, atol=0)


def test_everything_is_ignored():
    target = torch.full((2, 1, 3, 5, 7), 255, dtype=torch.uint8, device=DEVICE)
    for options in ENTROPIES.values():
        for result in check(make_logits(SHAPE, torch.float32), target, options._replace(ignore_index=255)):
            assert (result == 0).all()


def test_the_dice_sums_are_those_without_an_entropy():
    logits, target = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    alone = dice.dice_sums(logits, target, CE._replace(entropy="none"))
    for options in ENTROPIES.values():
        assert torch.equal(dice.dice_sums(logits, target, options)[:3], alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_runs_are_bit_equal(layout):
    shape = shape_of("real", layout, torch.bfloat16, 2)
    inputs = make_logits(shape, torch.bfloat16, layout), make_labels(shape), ENTROPIES["smoothed"]
    grad_sums = make_grad_sums(inputs[0], 0, 5)
    sums = [dice.dice_sums(*inputs) for _ in range(2)]
    grads = [dice.dice_sums_backward(grad_sums, *inputs) for _ in range(2)]
    assert torch.equal(*sums)
    assert torch.equal(*grads)


def test_an_entropy_is_of_all_classes():
    logits, target = make_logits(SHAPE, torch.float32), make_labels(SHAPE)
    assert dice.supports(logits, target, CE)
    assert not dice.supports(logits, target, CE._replace(first_class=1))
    assert not dice.supports(logits, target, CE._replace(entropy="hinge"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("entropy", ENTROPIES)
def test_the_pieces_on_a_cpu_are_the_definition(monkeypatch, entropy, dtype):
    """Sums by pieces of the volumes, of several layouts and of every kind of target."""
    from vnet_fast.ops import dice_chunks

    if DEVICE != "cpu":
        pytest.skip("the pieces are of CPUs")
    monkeypatch.setattr(dice_chunks, "CHUNK", 150 // torch.get_num_threads())
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-4}
    for layout, ignore_index in itertools.product(LAYOUTS, (None, 1, 255)):
        logits = in_layout(torch.randn(SHAPE, dtype=dtype), layout).requires_grad_()
        for target in (make_labels(SHAPE, ignore_index=ignore_index), make_channels(SHAPE, torch.bool, layout)):
            options = ENTROPIES[entropy]._replace(labels=target.shape[1] == 1, ignore_index=ignore_index)
            sums, expected = dice_sums(logits, target, options), dice_sums_definition(logits, target, options)
            torch.testing.assert_close(sums, expected, **tolerance)
            weights = torch.randn_like(sums)
            grads = [torch.autograd.grad(value, logits, weights)[0] for value in (sums, expected)]
            torch.testing.assert_close(*grads, **tolerance)
            assert grads[0].stride() == logits.stride()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=name_of)
def test_a_label_out_of_bounds_is_an_error_in_a_piece(dtype):
    # pieces are of CPUs, on a GPU machine too
    labels = make_labels(SHAPE).to("cpu", dtype)
    labels[1, 0, 2, 4, 6] = 3
    with pytest.raises(RuntimeError, match="out of bounds"):
        dice_sums(torch.randn(SHAPE), labels, CE)
    dice_sums(torch.randn(SHAPE), labels, CE._replace(ignore_index=3))
