"""Normalisation between convolution and activation, and how batch norm is folded into a convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vnet_fast.ops.eager import is_eager
from vnet_fast.ops.norm_prelu import norm_prelu, norm_prelu_join
from vnet_fast.ops.norm_prelu_definition import Sets
from vnet_fast.ops.training_pass import Update, current_pass, move_averages

KINDS = ("instance", "batch", "group")
# as PyTorch's norms have them by default
EPS = 1e-5
MOMENTUM = 0.1
# as in MONAI's SegResNet
GROUPS = 8


class Norm(nn.Module):
    """Normalises each channel, before a PReLU.

    Mean and variance are taken over the voxels of each sample and channel (`instance`), of each sample and each of 8
    groups of channels (`group`), or of each channel of a batch (`batch`). 8 groups need channels in multiples of 8;
    other numbers have as many groups as 8 and they are divisible by.

    Of a single voxel instance norm leaves nothing but `bias`, where PyTorch's raises an error.

    With batch norm, training takes the statistics of the batch and keeps running means of them, for evaluation, unless
    `frozen` is set: then training normalises by the running means too, and leaves them as they are. Of
    several processes each takes the statistics of its own part of the batch; DistributedDataParallel hands out the
    running means of the first.

    Args:
        kind: one of KINDS.
        channels: of the volumes.
    """

    # only for batch norm
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind, self.frozen = kind, False
        groups = math.gcd(GROUPS, channels) if kind == "group" else channels
        self.sets = Sets(groups, across_samples=kind == "batch", eps=EPS)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "batch":
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same affine map for every input: batch norm in evaluation mode, or frozen."""
        return self.kind == "batch" and (self.frozen or not self.training)

    def forward(self, x: Tensor, slope: Tensor, residual: Tensor | None, skip: Tensor | None) -> Tensor:
        """PReLU(normalised x + residual); if `skip` is given, it is concatenated along the channels instead."""
        if skip is None:
            y, statistics = norm_prelu(x, self.weight, self.bias, slope, residual, self.sets)
        else:
            y, statistics = norm_prelu_join(x, self.weight, self.bias, slope, skip, self.sets)
        if self.kind == "batch":
            self._keep(*statistics, self.sets.size(x))
        return y

    def alone(self, x: Tensor) -> Tensor:
        """Normalised x, without PReLU."""
        if self.is_fixed:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.sets.eps)
        return self.forward(x, torch.ones_like(self.bias), None, None)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running means towards a batch's; the running variance is of an unbiased estimate, as PyTorch's."""
        updates = [
            Update(self.running_mean, mean[0].to(self.running_mean.dtype), 1.0, MOMENTUM),
            Update(self.running_var, variance[0].to(self.running_var.dtype), count / max(count - 1, 1), MOMENTUM),
        ]
        current = current_pass() if is_eager(mean) else None
        if current is None:
            move_averages(updates)
        else:
            current.move_later(updates)

    def folded(self, convolution: nn.Conv3d | nn.ConvTranspose3d, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of a convolution that gives what this norm, which is fixed, makes of its output.

        Args:
            convolution: without bias.
            weight: of the convolution, in any precision.
        """
        scale = self.weight * (self.running_var + EPS).rsqrt()
        # the weight of a transposed convolution has the input's channels first
        vector = (1, -1) if isinstance(convolution, nn.ConvTranspose3d) else (-1, 1)
        return weight * scale.reshape(*vector, 1, 1, 1).to(weight.dtype), self.bias - self.running_mean * scale
