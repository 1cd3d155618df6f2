"""The loss of a run, where its masks have voxels that do not count."""

import pytest
import torch
import torch.nn.functional as F

from vnet_fast.data.training_data import Data
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.run.configuration import Config
from vnet_fast.training.network import make_loss

CLASSES = 3


def made():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 5, 6, 7, generator=generator, requires_grad=True)
    target = torch.randint(0, CLASSES, (2, 1, 5, 6, 7), generator=generator).to(torch.uint8)
    ignored = torch.rand(target.shape, generator=generator) < 0.3
    return logits, target, ignored


@pytest.mark.parametrize("name", ["dice", "dice-ce"])
def test_ignored_voxels_do_not_count(name):
    logits, target, ignored = made()
    loss = make_loss(Config(loss=name, output="x"), Data([], [], CLASSES, ignored=9))
    value = loss(logits, target.masked_fill(ignored, CLASSES))
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[ignored.expand_as(gradient)] == 0).all()
    p = torch.softmax(logits.detach().double(), 1) * ~ignored
    g = F.one_hot(target[:, 0].long(), CLASSES).movedim(-1, 1).double() * ~ignored
    if name == "dice":
        sums = (2, 3, 4)
        dice = 1 - 2 * (p * g).sum(sums) / ((p * p).sum(sums) + (g * g).sum(sums) + 1e-5)
        expected = dice[:, 1:].mean()
    else:
        sums = (0, 2, 3, 4)
        dice = 1 - (2 * (p * g).sum(sums) + 1e-5) / (p.sum(sums) + g.sum(sums) + 1e-5)
        marked = target[:, 0].long().masked_fill(ignored[:, 0], -1)
        expected = dice[1:].mean() + F.cross_entropy(logits.detach().double(), marked, ignore_index=-1)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_losses_of_masks_in_which_all_counts_are_as_they_were():
    logits, target, _ = made()
    paper = make_loss(Config(output="x"), Data([], [], CLASSES))
    assert isinstance(paper, DiceLoss)
    assert torch.equal(paper(logits, target), DiceLoss.paper()(logits, target))
    assert isinstance(make_loss(Config(loss="dice-ce", output="x")), DiceCELoss)
