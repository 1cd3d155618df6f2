"""The weighted cross-entropy of the paper, against its definition."""

import math

import pytest
import torch

from tests.nn.test_losses import inputs, value_and_gradient
from vnet_fast import WeightedCrossEntropy


def test_by_its_definition():
    logits, target = inputs((2, 3, 4, 3, 5), labels=True)
    expected = []
    for n in range(2):
        log_p = torch.log_softmax(logits[n], 0).flatten(1)
        labels = target[n].flatten()
        share = [(labels == k).double().mean() for k in range(3)]
        expected.append(-sum(log_p[k, v] / share[k] for v, k in enumerate(labels.tolist())) / labels.numel())
    expected = torch.stack(expected)
    torch.testing.assert_close(WeightedCrossEntropy("none")(logits, target), expected)
    torch.testing.assert_close(WeightedCrossEntropy()(logits, target.to(torch.uint8)), expected.mean())
    torch.testing.assert_close(WeightedCrossEntropy("sum")(logits, target.float()), expected.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_by_the_weight_of_each_voxel(dtype):
    """The mean of V / n_k times -log p, voxel by voxel, and its gradient."""
    logits, target = inputs((2, 3, 9, 8, 7), dtype=dtype, labels=True)
    target[1, :, 2:] = 0

    def weighted(x, labels):
        share = torch.nn.functional.one_hot(labels[:, 0], 3).double().mean((1, 2, 3))
        weight = (1 / share).gather(1, labels.flatten(1)).reshape(labels[:, 0].shape)
        return (weight * torch.nn.functional.cross_entropy(x, labels[:, 0], reduction="none")).mean()

    value, grad = value_and_gradient(WeightedCrossEntropy(), logits, target)
    exact_value, exact_grad = value_and_gradient(weighted, logits.double(), target)
    torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=0)
    rounding = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32).eps
    assert (grad.double() - exact_grad).abs().max() <= rounding * exact_grad.abs().max()


def test_weighs_classes_equally():
    """One foreground voxel pulls as hard as all the background together."""
    logits = torch.zeros(1, 2, 4, 4, 4, requires_grad=True)
    target = torch.zeros(1, 1, 4, 4, 4)
    target[0, 0, 1, 2, 3] = 1
    (grad,) = torch.autograd.grad(WeightedCrossEntropy()(logits, target), logits)
    inside = target[0, 0] == 1
    torch.testing.assert_close(grad[0, 1][inside].sum(), -grad[0, 1][~inside].sum())


def test_without_a_class_and_in_half():
    logits, _ = inputs((1, 2, 8, 8, 8), dtype=torch.bfloat16)
    target = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    loss = WeightedCrossEntropy()(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.float(), target[:, 0].long()))


def test_errors():
    with pytest.raises(ValueError, match="reduction must be one of"):
        WeightedCrossEntropy("median")
    with pytest.raises(ValueError, match=r"target must have shape \(1, 1, 4\) to match input; got \(1, 2, 4\)"):
        WeightedCrossEntropy()(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))


def test_of_extreme_logits():
    """A probability of 0 counts only where its class is the voxel's."""
    logits = torch.tensor([[[1e30, 0.0, -1e30], [-1e30, 0.0, 1e30]]], requires_grad=True)
    loss = WeightedCrossEntropy()(logits, torch.tensor([[[0, 1, 1]]]))
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, torch.tensor(0.5 * math.log(2)))
    torch.testing.assert_close(grad, torch.tensor([[[0, 0.25, 0], [0, -0.25, 0]]]))


@pytest.mark.parametrize("label", [-1, 2])
def test_with_a_label_out_of_range(label):
    with pytest.raises(RuntimeError, match="out of bounds"):
        WeightedCrossEntropy()(torch.zeros(1, 2, 4), torch.tensor([[[0, 1, label, 1]]]))


def test_has_a_gradient_of_its_gradient():
    logits, target = inputs((1, 3, 2, 2), labels=True)
    assert torch.autograd.gradgradcheck(lambda x: WeightedCrossEntropy()(x, target), logits.clone().requires_grad_())


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_compiles_without_a_break(dtype):
    logits, target = inputs((1, 3, 4, 3, 5), labels=True)
    loss = WeightedCrossEntropy()
    compiled = torch.compile(lambda x, y: loss(x, y), fullgraph=True, backend="aot_eager")
    expected = value_and_gradient(loss, logits, target.to(dtype))
    torch.testing.assert_close(value_and_gradient(compiled, logits, target.to(dtype)), expected)
