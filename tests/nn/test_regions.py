"""The losses of regions, against PyTorch and MONAI."""

import pytest
import torch
import torch.nn.functional as F

from vnet_fast.nn.regions import RegionLoss
from vnet_fast.ops.dice import DiceOptions

LABELS = [(1, 2, 3), (1, 3), (3,)]


def make(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 7, 8, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(0, 5, (2, 1, 6, 7, 8), generator=generator).to(torch.uint8)
    inside = torch.cat([sum(target == label for label in labels) for labels in LABELS], dim=1).double()
    return logits, target, inside


def test_dice_and_binary_cross_entropy():
    logits, target, inside = make()
    loss = RegionLoss(LABELS)(logits, target)
    p = torch.sigmoid(logits.detach().double()).requires_grad_()
    sums = (0, 2, 3, 4)
    dice = 1 - (2 * (p * inside).sum(sums) + 1e-5) / ((p + inside).sum(sums) + 1e-5)
    expected = dice.mean() + F.binary_cross_entropy(p, inside)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (of_p,) = torch.autograd.grad(expected, p)
    torch.testing.assert_close(gradient.double(), of_p * p.detach() * (1 - p.detach()), rtol=1e-4, atol=1e-8)


def test_the_papers_dice():
    logits, target, inside = make()
    p, axes = torch.sigmoid(logits.detach().double()), (2, 3, 4)
    expected = 1 - 2 * (p * inside).sum(axes) / ((p * p).sum(axes) + inside.sum(axes) + 1e-5)
    torch.testing.assert_close(RegionLoss(LABELS, squared=True)(logits, target).double(), expected.mean())


@pytest.mark.parametrize("squared", [False, True])
def test_labels_of_no_region_are_background(squared):
    logits, target, _ = make()
    loss, others = RegionLoss(LABELS, squared), target.clone()
    others[target == 4] = 0
    assert torch.equal(loss(logits, target), loss(logits, others))


def test_half_precision_is_that_of_float32_of_the_same_logits():
    logits, target, _ = make(dtype=torch.bfloat16)
    loss = RegionLoss(LABELS)
    torch.testing.assert_close(loss(logits, target).float(), loss(logits.float(), target), rtol=2e-3, atol=0)


def test_kernels_take_the_layout_of_regions(monkeypatch):
    layouts = pytest.importorskip("vnet_fast.kernels.dice_layouts", reason="Triton is not installed")
    logits, target, _ = make(dtype=torch.bfloat16)
    loss, taken = RegionLoss(LABELS), []
    options = DiceOptions("sigmoid", labels=False)
    loss.dice.register_forward_pre_hook(lambda _, given: taken.append(layouts.supports(*given, options)))
    loss(logits.detach().contiguous(memory_format=torch.channels_last_3d), target)
    assert taken == [True]


def test_it_has_nothing_to_store():
    assert RegionLoss(LABELS).state_dict() == {}


@pytest.mark.parametrize("squared", [False, True])
def test_ignored_voxels_do_not_count(squared):
    """The loss of the others alone, whose number the mean is over."""
    logits, target, _ = make()
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    marked = target.masked_fill(ignored, 9)
    loss = RegionLoss(LABELS, squared, ignored=9)(logits, marked)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[ignored.expand_as(gradient)] == 0).all()
    if squared:
        # volumes count alike
        return
    kept = ~ignored[:, 0]
    rows = logits.detach().movedim(1, -1)[kept].T[None].requires_grad_()
    alone = RegionLoss(LABELS)(rows, target[:, 0][kept][None, None])
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.movedim(1, -1)[kept].T[None], torch.autograd.grad(alone, rows)[0])


def test_where_all_voxels_are_ignored_there_is_no_cross_entropy():
    logits, target, _ = make()
    loss = RegionLoss(LABELS, ignored=9)(logits, torch.full_like(target, 9))
    assert torch.isfinite(loss)
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@pytest.mark.parametrize("squared", [False, True])
def test_ignored_voxels_are_in_no_region(squared):
    """The label that they have for training may be one that a region names and no mask has."""
    logits, target, _ = make()
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    named = [(*labels, 9) for labels in LABELS]
    marked = target.masked_fill(ignored, 9)
    loss = RegionLoss(named, squared, ignored=9)(logits, marked)
    assert loss.item() == RegionLoss(LABELS, squared, ignored=9)(logits, marked).item()
