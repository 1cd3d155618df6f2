"""`norm_prelu` and its gradients in plain PyTorch.

`norm_prelu_definition` is the formula. Kernels are tested against it, and exported networks consist of it. The other
functions give the same numbers by the operations that are fast on channels-last volumes on a CPU: PyTorch's batch norm
of given statistics, of each sample if they are its own. PyTorch's instance norm would copy the volume into another
layout, and the gradient of its group norm takes ten times as long.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.accelerators import has_float64
from vnet_fast.ops.prelu import prelu, prelu_gradients

# numbers, 512 kB in float32
PIECE = 1 << 17


class Sets(NamedTuple):
    """Over which elements of (N, C, *spatial) a mean and a variance are taken: always over all voxels.

    Args:
        groups: into how many groups of adjacent channels the channels are divided; C for each channel on its own.
        across_samples: whether the samples of the batch are taken together.
        eps: is added to the variance.
    """

    groups: int
    across_samples: bool
    eps: float

    def shape(self, x: Tensor) -> tuple[int, int]:
        """The shape of the statistics: (N or 1, groups)."""
        return 1 if self.across_samples else x.shape[0], self.groups

    def size(self, x: Tensor) -> int:
        """How many elements of a volume share a mean."""
        return x.numel() // (self.groups * (1 if self.across_samples else x.shape[0]))


def wide_type(x: Tensor) -> torch.dtype:
    """The dtype of statistics and of the gradients of weights: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def norm_prelu_definition(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None, sets: Sets
) -> Tensor:
    """`norm_prelu`, computed in float32 or wider and rounded once."""
    wide, vector = wide_type(x), (-1, *[1] * (x.ndim - 2))
    values = x.to(wide).unflatten(1, (sets.groups, -1))
    axes = [axis for axis in range(values.ndim) if axis != 1 and (axis != 0 or sets.across_samples)]
    centred = values - values.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    z = (centred * (variance + sets.eps).rsqrt()).flatten(1, 2)
    z = z * weight.to(wide).reshape(vector) + bias.to(wide).reshape(vector)
    if residual is not None:
        z = z + residual.to(wide)
    return torch.where(z > 0, z, z * slope.to(wide).reshape(vector)).to(x.dtype)


def statistics(x: Tensor, sets: Sets) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each set, of the shape of the sets, float32 or wider."""
    channels = [_of_each_channel(part) for part in _parts(x, sets)]
    mean, variance = (torch.stack(values) for values in zip(*channels, strict=True))
    if sets.groups == x.shape[1]:
        return mean, variance
    means = mean.unflatten(1, (sets.groups, -1))
    mean = means.mean(2)
    variance = variance.unflatten(1, (sets.groups, -1)).mean(2) + (means - mean[..., None]).square().mean(2)
    return mean, variance


def _of_each_channel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: of pieces that fit in a cache, in two passes, and then of all of them.

    PyTorch's batch statistics take as long, but on a CPU they add 10⁵ numbers one after the other, and round the mean
    to the type of `x`.
    """
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    pieces = rows.split(max(1, PIECE // x.shape[1]))
    means, squares = [], []
    for piece in pieces:
        values = piece.to(wide_type(x))
        means.append(values.mean(0))
        centred = values - means[-1]
        squares.append(centred.mul_(centred).sum(0))
    widest = torch.float64 if has_float64(x.device) else torch.float32
    counts = torch.tensor([[len(piece)] for piece in pieces], dtype=widest, device=x.device)
    of_pieces = torch.stack(means).to(widest)
    mean = (of_pieces * counts).sum(0) / len(rows)
    variance = (torch.stack(squares).to(widest) + counts * (of_pieces - mean).square()).sum(0) / len(rows)
    return mean.to(wide_type(x)), variance.to(wide_type(x))


def normalise_and_activate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    sets: Sets,
) -> Tensor:
    """`norm_prelu` with the statistics given, (N, C, *spatial) in the dtype of `x`."""
    return prelu(_before_activation(x, weight, bias, residual, statistics, sets), slope.to(x.dtype))


def norm_prelu_gradients_definition(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    sets: Sets,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `norm_prelu`.

    Returns:
        grad_x and grad_z, in the dtype of `x`; grad_z is the gradient before the activation, and so that of a full
        residual. grad_weight, grad_bias and grad_slope: (C,), float32 or wider.
    """
    z = _before_activation(x, weight, bias, residual, statistics, sets)
    grad_z, grad_slope = prelu_gradients(grad_y, z, slope.to(x.dtype))
    own = sets.groups == x.shape[1]
    weight = weight.to(wide_type(x))
    grad_x, sums = [], []
    means, variances = (_of_channels(values, x) for values in statistics)
    for part, grad, mean, variance in zip(_parts(x, sets), _parts(grad_z, sets), means, variances, strict=True):
        # for groups, with fixed statistics first
        given = [None, None, mean, (variance + sets.eps).rsqrt()] if own else [mean, variance, None, None]
        found, *vectors = torch.ops.aten.native_batch_norm_backward(
            grad, part, weight, *given, own, sets.eps, [True, True, True]
        )
        if not own:
            found = found - _of_statistics(part, weight, mean, variance, vectors, sets)
        grad_x.append(found)
        sums.append(vectors)
    grad_weight, grad_bias = (torch.stack(values).sum(0) for values in zip(*sums, strict=True))
    return grad_x[0] if len(grad_x) == 1 else torch.cat(grad_x), grad_z, grad_weight, grad_bias, grad_slope


def _of_statistics(
    x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, gradients: list[Tensor], sets: Sets
) -> Tensor:
    """What the dependence of a group's mean and variance on x takes from the gradient of x.

    Args:
        x, weight, mean, variance, sets: as above, of one part.
        gradients: of weight and bias.
    """
    grad_weight, grad_bias = gradients
    rstd = (variance + sets.eps).rsqrt()

    def mean_of_group(values: Tensor) -> Tensor:
        total: Tensor = (weight * values).unflatten(0, (sets.groups, -1)).sum(1) / sets.size(x)
        return total.repeat_interleave(x.shape[1] // sets.groups)

    factor = rstd * rstd * mean_of_group(grad_weight)
    shift = rstd * mean_of_group(grad_bias) - factor * mean
    # the statistics 0 and 1 make it shift + factor * x
    zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
    return _affine(x, factor, shift, zeros, ones, 0.0)


def _before_activation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    statistics: tuple[Tensor, Tensor],
    sets: Sets,
) -> Tensor:
    weight, bias = weight.to(wide_type(x)), bias.to(wide_type(x))
    means, variances = (_of_channels(values, x) for values in statistics)
    parts = [
        _affine(part, weight, bias, mean, variance, sets.eps)
        for part, mean, variance in zip(_parts(x, sets), means, variances, strict=True)
    ]
    z = parts[0] if len(parts) == 1 else torch.cat(parts)
    return z if residual is None else z.add_(residual.to(x.dtype))


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    y: Tensor = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
    return y


def _parts(x: Tensor, sets: Sets) -> list[Tensor]:
    """The batch, or its samples if each has statistics of its own."""
    return [x] if sets.across_samples else list(x.split(1))


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    """Statistics (S, groups) as (S, C)."""
    return values.repeat_interleave(x.shape[1] // values.shape[1], dim=1)
