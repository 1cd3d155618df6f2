"""The sums of cross-entropies and their focal forms over voxels, and their gradients, in plain PyTorch.

With x the logits, g the target, p the softmax or sigmoid of x, and ℓ(x) = -log p, of a softmax

    Σ g ℓ    or, focal, Σ g (1 - p)^γ ℓ;  smoothed also Σ ℓ, over all voxels that count

and of a sigmoid

    Σ g ℓ(x) and Σ (1 - g) ℓ(-x)    or, focal, Σ g f and Σ (1 - g) f
    f = (g ℓ(x) + (1 - g) ℓ(-x)) p(-z)^γ,  z = (2g - 1) x

over the voxels of each (volume, class). An infinite ℓ with a factor of 0 is 0, so that a probability of 0 counts only
where its class is the target's. `kernels/dice_entropy.py` has the same for the kernels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax_sums(
    log_p: Tensor, g: Tensor, counted: Tensor | None, hard: bool, gamma: float | None, smoothed: bool
) -> list[Tensor]:
    """The sums of a softmax over the voxels.

    Args:
        log_p: (N, C, *spatial), the logarithm of the softmax of the logits.
        g: (N, C, *spatial), the target, 0 where it is ignored; of the type of `log_p`.
        counted: None, or (N, 1, *spatial), ones where a voxel counts, else zeros.
        hard: whether the target is known to be 0 or 1.
        gamma, smoothed: as in `DiceOptions`.

    Returns:
        (N, C) for each sum.
    """
    loss = -log_p
    focal = loss if gamma is None else loss * _complement(log_p.exp()) ** gamma
    sums = [_weighted_sum(g, focal, hard)]
    if smoothed:
        sums.append(loss.sum(tuple(range(2, loss.ndim))) if counted is None else _weighted_sum(counted, loss, True))
    return sums


def softmax_slopes(
    grad_sums: Tensor,
    p: Tensor,
    log_p: Tensor | None,
    g: Tensor,
    counted: Tensor | None,
    gamma: float | None,
    smoothed: bool,
) -> Tensor:
    """t of each voxel and class, of which the gradient of the logits is p_j Σ_k t_k - t_j.

    Args:
        grad_sums: (1 or 2, N, C), the gradients of the sums.
        p: the softmax of the logits.
        log_p: its logarithm, which only gamma needs.
        g, counted, gamma, smoothed: as for `softmax_sums`.
    """
    c, s = _spread(grad_sums, p.ndim)
    t = c * g
    if gamma is not None and log_p is not None:
        wrong = _complement(p)
        slope = gamma * wrong ** (gamma - 1) * p * _finite(-log_p)
        t = t * (wrong**gamma + slope.masked_fill(wrong == 0, 0))
    if smoothed:
        t = t + (s if counted is None else s * counted)
    return t


def sigmoid_sums(x: Tensor, g: Tensor, counted: Tensor | None, hard: bool, gamma: float | None) -> list[Tensor]:
    """The two sums of a sigmoid over the voxels.

    Args:
        x: (N, C, *spatial) logits.
        g, counted, hard, gamma: as for `softmax_sums`.

    Returns:
        (N, C) for each sum.
    """
    if gamma is not None or hard:
        inside = outside = binary_loss(x, g, hard, gamma)
    else:
        inside, outside = -F.logsigmoid(x), -F.logsigmoid(-x)
    return [_weighted_sum(g, inside, hard), _weighted_sum(_others(g, counted), outside, hard)]


def sigmoid_gradient(
    grad_sums: Tensor, x: Tensor, g: Tensor, counted: Tensor | None, hard: bool, gamma: float | None
) -> Tensor:
    """The gradient of the logits, (N, C, *spatial).

    Args:
        grad_sums: (2, N, C), the gradients of the sums.
        x, g, counted, hard, gamma: as for `sigmoid_sums`.
    """
    c, s = _spread(grad_sums, x.ndim)
    other = _others(g, counted)
    if gamma is None:
        return s * other * torch.sigmoid(x) - c * g * torch.sigmoid(-x)
    sign = 2 * g - 1
    z = x * sign
    wrong = torch.sigmoid(-z)
    slope = gamma * sign * torch.sigmoid(z) * _finite(binary_loss(x, g, hard, None))
    error = -sign * wrong if hard else torch.sigmoid(x) - g
    return (c * g + s * other) * wrong**gamma * (error - slope)


def binary_loss(x: Tensor, g: Tensor, hard: bool, gamma: float | None) -> Tensor:
    """u of each logit and target, or f with gamma; `hard` as for `sigmoid_sums`."""
    z = x * (2 * g - 1)
    loss = -F.logsigmoid(z) if hard else _times(g, -F.logsigmoid(x)) + _times(1 - g, -F.logsigmoid(-x))
    return loss if gamma is None else loss * torch.sigmoid(-z) ** gamma


def cross_entropy(sums: Tensor, weight: Tensor | None, smoothing: float, reduction: str, voxels: int | None) -> Tensor:
    """The cross-entropy of a batch, as `torch.nn.CrossEntropyLoss` has it; 0 and not 0 / 0 where no voxel counts.

    Args:
        sums: (4 or 5, N, C) of `dice_sums`, with the entropy of a softmax.
        weight: None, or (C,) factors.
        smoothing: the share of the target that is spread over all classes.
        reduction: `mean` or `sum`.
        voxels: the number that `mean` divides by; None for labels, whose weights it divides by.

    Raises:
        RuntimeError: if there is not one weight for each class, as PyTorch raises.
    """
    # of labels, which have no gradient
    ground, losses = sums[2].detach().sum(0), sums[3].sum(0)
    if weight is not None and weight.shape != losses.shape:
        raise RuntimeError(f"weight must have shape {tuple(losses.shape)}; got {tuple(weight.shape)}")
    if smoothing:
        losses = (1 - smoothing) * losses + smoothing / len(losses) * sums[4].sum(0)
    if weight is not None:
        losses, ground = losses * weight.to(losses), ground * weight.to(ground)
    total = losses.sum()
    if reduction == "sum":
        return total
    if voxels is not None:
        return total / voxels
    count = ground.sum()
    return total / count.where(count != 0, 1)


def _spread(grad_sums: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """The first gradient and the last one, (N, C, 1, …)."""
    first, last = (grad.reshape(*grad.shape, *[1] * (ndim - 2)) for grad in (grad_sums[0], grad_sums[-1]))
    return first, last


def _others(g: Tensor, counted: Tensor | None) -> Tensor:
    return 1 - g if counted is None else (1 - g) * counted


def _complement(p: Tensor) -> Tensor:
    """1 - p, without the rounding that makes it negative."""
    return (1 - p).clamp(min=0)


def _times(weight: Tensor, loss: Tensor) -> Tensor:
    """A product that is 0 where its weight is, also of an infinite loss."""
    return (weight * loss).masked_fill((weight == 0) & loss.isinf(), 0)


def _weighted_sum(weight: Tensor, loss: Tensor, hard: bool) -> Tensor:
    """The sum of the product over the voxels; `hard` says that the weights are 0 or 1."""
    voxels = tuple(range(2, loss.ndim))
    if not hard:
        return _times(weight, loss).sum(voxels)
    total = (weight * _finite(loss)).sum(voxels)
    return total.masked_fill(total >= torch.finfo(loss.dtype).max, torch.inf)


def _finite(loss: Tensor) -> Tensor:
    """The largest number instead of infinity, whose product with 0 is 0; flags are slow on a CPU."""
    return loss.clamp(max=torch.finfo(loss.dtype).max)
