"""`add_prelu` and `norm_prelu` by the CPU's kernels: what is computed of their sums."""

from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.kernels import cpu_activation as kernels
from vnet_fast.ops import cpu_convolution_choice as choice
from vnet_fast.ops.cpu_library import library
from vnet_fast.ops.norm_prelu_definition import Sets

_FORMAT = torch.channels_last_3d


def takes(x: Tensor) -> bool:
    """Whether the kernels are for a volume (N, C, D, H, W)."""
    return kernels.supports(x) and choice.kernels_run()


def add_prelu(
    x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """`add_prelu` of a volume that `takes` accepts; `out` may be memory for it, channels of a wider volume."""
    y: Tensor = kernels.activate(
        library(), x, _wide(slope), shift=_of_volumes(bias, x), residual=_laid_out(residual, x), out=out
    )
    return y


def add_prelu_gradients(
    grad_y: Tensor, x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `add_prelu`: grad_x, which is the residual's too, and grad_slope and grad_bias, (C,) float32."""
    shift, residual = _of_volumes(bias, x), _laid_out(residual, x)
    grad_x, sums = kernels.activate_backward(
        library(), _rows(grad_y, x), x, _wide(slope), shift=shift, residual=residual
    )
    of_x, _, of_slope = (values.float() for values in sums.sum(0))
    return grad_x, of_slope, of_x


class Numbers(NamedTuple):
    """Mean, scale and shift of each volume and channel, (N, C) float32, and 1 / standard deviation, float64."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    rstd: Tensor


def _numbers(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, sets: Sets) -> Numbers:
    repeats = x.shape[1] // sets.groups
    means, rstd = (
        values.double().repeat_interleave(repeats, 1).expand(x.shape[0], -1)
        for values in (mean, (variance.double() + sets.eps).rsqrt())
    )
    scale = rstd * weight.double()
    shift = bias.expand(x.shape[0], -1)
    return Numbers(_wide(means), _wide(scale), _wide(shift), rstd)


def statistics(x: Tensor, sets: Sets) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each set, of the shape of the sets, float32."""
    means, squares = kernels.statistics(library(), x)
    voxels = x.numel() // (x.shape[0] * x.shape[1])
    # (sets, channels and volumes of a set)
    means, squares = (_by_set(values, sets) for values in (means, squares))
    mean = means.mean(2)
    variance = (squares / voxels + (means - mean[..., None]).square()).mean(2)
    return mean.float(), variance.float()


def _by_set(values: Tensor, sets: Sets) -> Tensor:
    """(N, C) as (N or 1, groups, channels of a group and volumes of a set)."""
    groups: Tensor = values.unflatten(1, (sets.groups, -1))
    return groups.movedim(0, 2).flatten(1)[None] if sets.across_samples else groups


def norm_prelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    residual: Tensor | None,
    found: tuple[Tensor, Tensor],
    sets: Sets,
    out: Tensor | None = None,
) -> Tensor:
    """`norm_prelu` of a volume that `takes` accepts, with the statistics given."""
    numbers = _numbers(x, weight, bias, *found, sets)
    y: Tensor = kernels.activate(library(), x, _wide(slope), *numbers[:3], residual=_laid_out(residual, x), out=out)
    return y


def norm_prelu_gradients(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor,
    residual: Tensor | None,
    found: tuple[Tensor, Tensor],
    sets: Sets,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `norm_prelu`: grad_x, grad_z, and those of weight, bias and slope, (C,) float32."""
    numbers = _numbers(x, weight, bias, *found, sets)
    grad_z, sums = kernels.activate_backward(
        library(), _rows(grad_y, x), x, _wide(slope), *numbers[:3], residual=_laid_out(residual, x)
    )
    # Σ grad_z and Σ grad_z · normalised x
    of_bias, of_weight, of_slope = sums[:, 0], sums[:, 1] * numbers.rstd, sums[:, 2]
    means = (_mean_of_sets(values * weight.double(), x, sets) for values in (of_bias, of_weight))
    shift, factor = (numbers.rstd * mean for mean in means)
    grad_x: Tensor = kernels.combine(
        library(), grad_z, x, numbers.scale, _wide(-factor * numbers.rstd), numbers.mean, _wide(-shift)
    )
    grad_weight, grad_bias, grad_slope = (values.sum(0).float() for values in (of_weight, of_bias, of_slope))
    return grad_x, grad_z, grad_weight, grad_bias, grad_slope


def _mean_of_sets(values: Tensor, x: Tensor, sets: Sets) -> Tensor:
    """(N, C): for each volume and channel, the sum of its set's values over the number of the set's elements."""
    means = _by_set(values, sets).sum(2) / sets.size(x)
    return means.repeat_interleave(x.shape[1] // sets.groups, 1).expand(x.shape[0], -1)


def _wide(numbers: Tensor) -> Tensor:
    return numbers.float().contiguous()


def _of_volumes(numbers: Tensor | None, x: Tensor) -> Tensor | None:
    return None if numbers is None else _wide(numbers.expand(x.shape[0], -1))


def _laid_out(residual: Tensor | None, x: Tensor) -> Tensor | None:
    return None if residual is None else residual.to(x.dtype).contiguous(memory_format=_FORMAT)


def _rows(grad_y: Tensor, x: Tensor) -> Tensor:
    """A gradient in the type of x, and of a layout that the kernels read."""
    grad_y = grad_y.to(x.dtype)
    return grad_y if kernels.row_stride(grad_y) is not None else grad_y.contiguous(memory_format=_FORMAT)
