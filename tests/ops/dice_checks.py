"""What the tests of the Dice kernels share: inputs, and the check against the definition in float64."""

import numpy as np
import pytest
import torch

from tests.ops.kernels import DEVICE, INTERPRETED, surrounded
from vnet_fast.kernels import dice, dice_layouts
from vnet_fast.ops.dice import DiceOptions, dice_sums_definition, dice_sums_gradient_definition

EPSILON = torch.finfo(torch.float32).eps
LAYOUTS = ["contiguous", "channels_last"]
SIZES = ["one_voxel", "primes", "one_block", "one_block_and_one", "real"]
TERMS = {"plain": (False, False), "squared": (True, False), "soft": (False, True)}
PAPER = DiceOptions(activation="softmax", labels=True, first_class=1, squared=True)
DICE_SUMS = ("intersection", "prediction", "ground truth")
# by the entropy among them
SUMS = {"none": DICE_SUMS, "softmax": (*DICE_SUMS, "target"), "sigmoid": (*DICE_SUMS, "inside", "outside")}


def name_of(value):
    """`uint8` for torch.uint8: an id for a parameter."""
    return str(value).removeprefix("torch.")


def in_layout(tensor, layout):
    """The same numbers, dense, with the channels last or not."""
    if layout == "contiguous":
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture(autouse=True)
def _poisoned_lanes(monkeypatch):
    """The interpreter's masked loads without `other=` give NaN, or -1, where a GPU gives anything."""
    if not INTERPRETED:
        return
    from triton.runtime import interpreter

    original = interpreter.InterpreterBuilder.create_masked_load

    def load(self, pointers, mask, other, *arguments):
        if other is None:
            element = pointers.get_element_ty()
            ones = np.full(pointers.data.shape, -1, np.int64).view(np.uint8).reshape(*pointers.data.shape, 8)
            dtype = interpreter._get_np_dtype(element)
            data = np.ascontiguousarray(ones[..., : dtype.itemsize]).view(dtype).reshape(pointers.data.shape)
            other = interpreter.TensorHandle(data, element)
        return original(self, pointers, mask, other, *arguments)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)


def make_logits(shape, dtype, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(shape, generator=generator)
    return surrounded(in_layout(logits.to(dtype).to(DEVICE), layout))


def make_labels(shape, dtype=torch.uint8, ignore_index=None):
    """(N, 1, *spatial): every class, or `ignore_index` in a third of the voxels."""
    generator = torch.Generator().manual_seed(1)
    one_channel = shape[0], 1, *shape[2:]
    labels = torch.randint(min(shape[1], 2) if dtype == torch.bool else shape[1], one_channel, generator=generator)
    if ignore_index is not None:
        labels[torch.rand(one_channel, generator=generator) < 1 / 3] = ignore_index
    return surrounded(labels.to(dtype).to(DEVICE))


def make_channels(shape, dtype, layout="contiguous"):
    """(N, C, *spatial): zeros and ones, or numbers between them in a floating point type."""
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(shape, generator=generator)
    target = target if dtype.is_floating_point else target > 0.6
    return surrounded(in_layout(target.to(dtype).to(DEVICE), layout))


def make_grad_sums(logits, first_class=0, count=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, logits.shape[0], logits.shape[1] - first_class, generator=generator).to(DEVICE)


def shape_of(size, layout, dtype, classes=2):
    logits = make_logits((1, classes, 2), dtype, layout)
    block = dice.plan_of(logits, make_labels((1, classes, 2)), PAPER._replace(first_class=0)).form.block
    spatial = {
        "one_voxel": (1, 1, 1, 1),
        "primes": (2, 3, 5, 7),
        "one_block": (2, 1, 2, block // 2),
        "one_block_and_one": (2, 1, 1, block + 1),
        "real": (2, 12, 16, 20),
    }[size]
    return spatial[0], classes, *spatial[1:]


def definition(logits, target, grad_sums, options, dtype):
    """The sums and the gradient of the logits, of plain PyTorch on logits of `dtype`, in float64."""
    logits = logits.detach().to(dtype).requires_grad_()
    sums = dice_sums_definition(logits, target, options)
    if options.entropy != "none" and not logits.isfinite().all():
        # autograd has no gradient of what is infinite
        grad = dice_sums_gradient_definition(grad_sums.to(sums.dtype), logits.detach(), target, options)
    else:
        (grad,) = torch.autograd.grad(sums, logits, grad_sums.to(sums.dtype))
    return sums.detach().double(), grad.double()


def floors(logits, target, grad_sums, options, exact):
    """What rounding alone does to the sums, of which there are three or more, and to the gradient.

    Four float32 epsilons of the largest: an exponential, a division, some products and sums. For the
    gradient half an epsilon of its own type besides. The gradient of an entropy is that of its sum times a few terms of
    up to 1. Where Triton's interpreter runs, which cuts off
    to bfloat16, a whole one, and as it adds the n voxels of a tile one after the other, √n / 2 for the
    sums: half an epsilon in each addition, of random sign.
    """
    probability = logits.double()
    if options.activation != "none":
        activate = torch.sigmoid if options.activation == "sigmoid" else lambda x: torch.softmax(x, 1)
        probability = activate(probability)
    linear = options._replace(activation="none", entropy="none")
    grad_probability = definition(probability, target, grad_sums[:3], linear, torch.float64)[1]
    terms = dice_sums_definition(probability.abs(), target, linear._replace(soft=False)).nan_to_num(0)
    if options.soft:
        terms[0] = terms[1] + terms[2]
    rounding = torch.finfo(logits.dtype).eps / (1 if INTERPRETED and logits.dtype == torch.bfloat16 else 2)
    grad_floor = rounding * exact[1].nan_to_num(0).abs().amax()
    grad_floor += 4 * EPSILON * grad_probability.nan_to_num(0).abs().amax()
    if options.entropy != "none":
        grad_floor += 4 * EPSILON * (1 + (options.gamma or 0)) * grad_sums[3:].abs().amax()
        terms = torch.cat([terms, exact[0][3:].nan_to_num(0, 0, 0)])
    added = min(dice.plan_of(logits, target, options).form.block, logits[0, 0].numel())
    epsilons = 4 + added**0.5 / 2 if INTERPRETED else 4
    return epsilons * EPSILON * terms.amax((1, 2)), grad_floor


def check(logits, target, options, grad_sums=None):
    """Runs both kernels and compares with the definition; returns what they gave."""
    if grad_sums is None:
        grad_sums = make_grad_sums(logits, options.first_class, len(SUMS[options.entropy]) + options.smoothed)
    assert dice.supports(logits, target, options)
    sums = dice.dice_sums(logits, target, options)
    grad = dice.dice_sums_backward(grad_sums, logits, target, options)
    exact = definition(logits, target, grad_sums, options, torch.float64)
    plain = definition(logits, target, grad_sums, options, logits.dtype)

    assert sums.dtype == torch.float32
    assert sums.is_contiguous()
    # dense, also where the logits are a part of a larger volume
    assert (grad.dtype, grad.stride()) == (logits.dtype, torch.empty_like(logits).stride())
    sums_floor, grad_floor = floors(logits, target, grad_sums, options, exact)
    names = (*SUMS[options.entropy], "all voxels")
    assert len(sums) == len(exact[0])
    for name, ours, theirs, reference, floor in [
        *zip(names, sums, plain[0], exact[0], sums_floor, strict=False),
        ("gradient", grad, plain[1], exact[1], grad_floor),
    ]:
        assert ours.shape == reference.shape
        for where in (torch.isnan, torch.isposinf):
            assert torch.equal(where(ours), where(reference)), f"{name}: {where.__name__} elsewhere than defined"
        error = (ours.double() - reference).nan_to_num(0).abs().amax()
        allowed = 2 * (theirs - reference).nan_to_num(0).abs().amax() + floor
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
    return sums, grad


def few_programs(monkeypatch, count):
    """Lets small volumes have several blocks in each of `count` programs."""
    monkeypatch.setattr(dice_layouts, "MIN_BLOCKS", 1)
    monkeypatch.setattr(dice_layouts, "MAX_PROGRAMS", count)
    monkeypatch.setattr(dice_layouts, "_plan", dice_layouts._plan.__wrapped__)
