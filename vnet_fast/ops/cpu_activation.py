"""`add_prelu` and `norm_prelu` by the CPU's kernels: what is computed of their sums."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vnet_fast.kernels import cpu_activation as kernels
from vnet_fast.ops import cpu_convolution_choice as choice
from vnet_fast.ops.cpu_library import library
from vnet_fast.ops.norm_prelu_definition import Sets

Array = NDArray[np.float64]

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
    """Mean, scale and shift of each volume and channel, (N, C) float32, and 1 / standard deviation, float64.

    They are so few that NumPy computes them: PyTorch takes several times as long to dispatch an operation.
    """

    mean: Tensor
    scale: Tensor
    shift: Tensor
    rstd: Array


def _numbers(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, sets: Sets) -> Numbers:
    shape = x.shape[0], x.shape[1]
    repeats = shape[1] // sets.groups
    means = np.broadcast_to(_doubles(mean).repeat(repeats, 1), shape)
    rstd = np.broadcast_to((1 / np.sqrt(_doubles(variance) + sets.eps)).repeat(repeats, 1), shape)
    shift = np.broadcast_to(_doubles(bias), shape)
    return Numbers(_floats(means), _floats(rstd * _doubles(weight)), _floats(shift), rstd)


def statistics(x: Tensor, sets: Sets) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each set, of the shape of the sets, float32."""
    found = kernels.statistics(library(), x)
    voxels = x.numel() // (x.shape[0] * x.shape[1])
    # (sets, channels and volumes of a set)
    means, squares = (_by_set(_doubles(values), sets) for values in found)
    mean = means.mean(2)
    variance = (squares / voxels + (means - mean[..., None]) ** 2).mean(2)
    return _floats(mean), _floats(variance)


def _by_set(values: Array, sets: Sets) -> Array:
    """(N, C) as (N or 1, groups, channels of a group and volumes of a set)."""
    groups = values.reshape(len(values), sets.groups, -1)
    return groups.swapaxes(0, 1).reshape(1, sets.groups, -1) if sets.across_samples else groups


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
    of_bias, moments, of_slope = _doubles(sums).swapaxes(0, 1)
    of_weight = moments * numbers.rstd
    means = (_mean_of_sets(values * _doubles(weight), x, sets) for values in (of_bias, of_weight))
    shift, factor = (numbers.rstd * mean for mean in means)
    grad_x: Tensor = kernels.combine(
        library(), grad_z, x, numbers.scale, _floats(-factor * numbers.rstd), numbers.mean, _floats(-shift)
    )
    grad_weight, grad_bias, grad_slope = (_floats(values.sum(0)) for values in (of_weight, of_bias, of_slope))
    return grad_x, grad_z, grad_weight, grad_bias, grad_slope


def _mean_of_sets(values: Array, x: Tensor, sets: Sets) -> Array:
    """(N, C): for each volume and channel, the sum of its set's values over the number of the set's elements."""
    means = _by_set(values, sets).sum(2) / sets.size(x)
    return np.broadcast_to(means.repeat(x.shape[1] // sets.groups, 1), values.shape)


def _doubles(numbers: Tensor) -> Array:
    return numbers.detach().double().numpy()


def _floats(numbers: Array) -> Tensor:
    return torch.from_numpy(np.array(numbers, np.float32, order="C"))


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
