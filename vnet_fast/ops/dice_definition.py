"""The sums of the Dice loss and its relatives in plain PyTorch, with their gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.ops.eager import is_transformed
from vnet_fast.ops.entropy import sigmoid_gradient, sigmoid_sums, softmax_slopes, softmax_sums


class DiceOptions(NamedTuple):
    """The options of the sums.

    Args:
        activation: `none`, `sigmoid`, or `softmax` over the classes.
        labels: whether the target holds class indices.
        first_class: the first class that is counted; 1 leaves the background out.
        squared: sums p² and g² instead of p and g.
        soft: computes the intersection as (Σ|p| + Σ|g| - Σ|p - g|) / 2, which is right for targets between 0 and 1.
            It has no effect if `squared`.
        ignore_index: None, or the label whose voxels do not count. For a target with a channel for
            each class, a number that is no class ignores the voxels where no channel is set.
        entropy: `none`, or the sums of an entropy of the logits too: `softmax` or `sigmoid`. Then all classes are
            counted: `first_class` is 0.
        gamma: None, or the exponent of the entropy's focal form.
        smoothed: adds what the smoothing of labels takes, to the sums of a `softmax` entropy.
    """

    activation: str = "none"
    labels: bool = False
    first_class: int = 0
    squared: bool = False
    soft: bool = False
    ignore_index: int | None = None
    entropy: str = "none"
    gamma: float | None = None
    smoothed: bool = False


def dice_sums_definition(input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """`dice_sums` in plain PyTorch. The kernel is tested against it, and it runs where the kernel can't."""
    return sums_of(input, *targets_of(target, input, options), options)


def dice_sums_gradient_definition(grad_sums: Tensor, input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """The gradient of `input` in plain PyTorch, in its type and layout."""
    grad = gradient_of(grad_sums, input, *targets_of(target, input, options), options)
    return torch.empty_like(input).copy_(grad)


def targets_of(target: Tensor, input: Tensor, options: DiceOptions) -> tuple[Tensor, Tensor | None]:
    """g of the classes that count, zero where ignored; and None, or (N, 1, *spatial): ones where voxels count."""
    dtype, ignored = torch.promote_types(input.dtype, torch.float32), options.ignore_index
    counted = None if ignored is None else _counted(target, ignored, dtype)
    if options.labels:
        target = one_hot(target, input.shape[1], ignored, dtype)
    g = target[:, options.first_class :].to(dtype)
    return g if counted is None else g * counted, counted


def sums_of(input: Tensor, g: Tensor, counted: Tensor | None, options: DiceOptions) -> Tensor:
    """`dice_sums` of what `targets_of` makes of the target."""
    x = input.to(g.dtype)
    log_p = torch.log_softmax(x, 1) if options.entropy == "softmax" else None
    p: Tensor = _activated(x, log_p, options.activation)[:, options.first_class :]
    p = p if counted is None else p * counted
    voxels, hard, entropies = tuple(range(2, x.ndim)), options.labels, []
    if log_p is not None:
        entropies = softmax_sums(log_p, g, counted, hard, options.gamma, options.smoothed)
    elif options.entropy == "sigmoid":
        entropies = sigmoid_sums(x, g, counted, hard, options.gamma)
    if options.soft:
        prediction, ground = p.abs().sum(voxels), g.abs().sum(voxels)
        intersection = (prediction + ground - (p - g).abs().sum(voxels)) / 2
    else:
        intersection = (p * g).sum(voxels)
        if options.squared:
            p, g = p.square(), g.square()
        prediction, ground = p.sum(voxels), g.sum(voxels)
    return torch.stack([intersection, prediction, ground, *entropies])


def gradient_of(grad_sums: Tensor, input: Tensor, g: Tensor, counted: Tensor | None, options: DiceOptions) -> Tensor:
    """The gradient of the logits from that of `sums_of`, of the type of `g`."""
    x = input.to(g.dtype)
    # without a focal form, the gradient of an entropy needs no logarithm
    log_p = torch.log_softmax(x, 1) if options.entropy == "softmax" and options.gamma is not None else None
    probability: Tensor = _activated(x, log_p, options.activation)
    p = probability[:, options.first_class :]
    p = p if counted is None else p * counted
    a, b = grad_sums[:2].reshape(2, *grad_sums.shape[1:], *[1] * (x.ndim - 2))
    if options.squared:
        grad = a * g + 2 * b * p
    elif options.soft:
        grad = (b + a / 2) * p.sign() - a / 2 * (p - g).sign()
    else:
        grad = a * g + b
    if counted is not None:
        grad = grad * counted
    if options.first_class:
        grad = torch.cat([torch.zeros_like(probability[:, : options.first_class]), grad.expand_as(p)], 1)
    if options.entropy == "softmax":
        softmax = probability if options.activation == "softmax" else _activated(x, log_p, "softmax")
        slopes = softmax_slopes(grad_sums[3:], softmax, log_p, g, counted, options.gamma, options.smoothed)
        if options.activation == "softmax":
            # the gradients of both, p_j (d_j - Σ p d) and p_j Σ t - t_j, in fewer passes
            both: Tensor = probability * grad - slopes
            return both - probability * both.sum(1, keepdim=True)
        entropy: Tensor = softmax * slopes.sum(1, keepdim=True) - slopes
        return _through(options.activation, probability, grad) + entropy
    grad = _through(options.activation, probability, grad)
    if options.entropy == "sigmoid":
        grad = grad + sigmoid_gradient(grad_sums[3:], x, g, counted, options.labels, options.gamma)
    return grad


def _through(activation: str, probability: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the logits from that of their probability."""
    if activation == "softmax":
        return probability * (grad - (probability * grad).sum(1, keepdim=True))
    return probability * (1 - probability) * grad if activation == "sigmoid" else grad


def _activated(x: Tensor, log_p: Tensor | None, activation: str) -> Tensor:
    """p of all classes; `log_p` is that of a softmax, if it is at hand."""
    if activation == "softmax":
        return torch.softmax(x, 1) if log_p is None else log_p.exp()
    return torch.sigmoid(x) if activation == "sigmoid" else x


def _counted(target: Tensor, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """(N, 1, *spatial): 1 where a voxel counts, 0 where it is ignored."""
    num_channels = target.shape[1]
    if num_channels == 1:
        return (target != ignore_index).to(dtype)
    if 0 <= ignore_index < num_channels:
        return 1 - target[:, ignore_index : ignore_index + 1].to(dtype)
    return (target.sum(1, keepdim=True) > 0).to(dtype)


def one_hot(labels: Tensor, num_classes: int, ignore_index: int | None, dtype: torch.dtype) -> Tensor:
    """(N, C, *spatial): 1 where a voxel of (N, 1, *spatial) class indices has the class, else 0."""
    index = labels.long()
    if ignore_index is not None and not 0 <= ignore_index < num_classes:
        index = index.masked_fill(labels == ignore_index, 0)
    shape = (labels.shape[0], num_classes, *labels.shape[2:])
    # in place unless each sample has its own labels, which nothing that is made here can take (`torch.func.vmap`)
    scatter = Tensor.scatter if is_transformed(labels) else Tensor.scatter_
    return scatter(torch.zeros(shape, dtype=dtype, device=labels.device), 1, index, 1)
