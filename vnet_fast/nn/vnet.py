"""V-Net: the volumetric, fully convolutional network of Milletari, Navab and Ahmadi (2016)."""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vnet_fast.nn.convolution import Convolution, UpConvolution, convolve, convolve_prelu
from vnet_fast.nn.norm import Norm
from vnet_fast.nn.topology import KERNEL_SIZE, LEVELS, TOPOLOGIES, check_channels, check_form, fewer_halvings, strides
from vnet_fast.ops.add_prelu import add_prelu_join
from vnet_fast.ops.eager import is_transformed

INITIAL_SLOPE = 0.25


def initialise(module: nn.Conv3d | nn.ConvTranspose3d) -> None:
    """Initialises a convolution as the authors' release does: weights by He et al. 2015, with the mean of fan-in and
    fan-out, and zero biases.
    """
    fan = (module.in_channels + module.out_channels) / 2 * math.prod(module.kernel_size)
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class Activated(nn.Module):
    """A convolution followed by a PReLU, with a norm between them that takes the place of the bias.

    Args:
        convolution: the class of the convolution.
        in_channels, channels, kernel_size, stride, padding: of the convolution.
        norm: one of `norm.KINDS`, or None.
    """

    def __init__(
        self,
        convolution: type[Convolution] | type[UpConvolution],
        in_channels: int,
        channels: int,
        kernel_size: int | tuple[int, int, int],
        norm: str | None,
        stride: int | tuple[int, int, int] = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.convolution = convolution(in_channels, channels, kernel_size, stride, padding, bias=norm is None)
        initialise(self.convolution)
        self.norm = None if norm is None else Norm(norm, channels)
        self.activation = nn.PReLU(channels, init=INITIAL_SLOPE)

    def forward(self, x: Tensor, residual: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """PReLU(norm(convolution(x)) + residual); if `skip` is given, it is concatenated along the channels."""
        if _has_hooks(self.convolution) or _has_hooks(self.activation):
            return self._one_by_one(x, residual, skip)
        if self.norm is not None and not self.norm.is_fixed:
            return cast(Tensor, self.norm(convolve(self.convolution, x)[0], self.activation.weight, residual, skip))
        if skip is None:
            return convolve_prelu(self.convolution, x, self.activation.weight, self.norm, residual)
        x, bias = convolve(self.convolution, x, self.norm)
        return add_prelu_join(x, self.activation.weight, bias, skip)

    def _one_by_one(self, x: Tensor, residual: Tensor | None, skip: Tensor | None) -> Tensor:
        """The same by calls of the modules, so that their hooks see what they take and return."""
        x = self.convolution(x)
        if self.norm is not None:
            x = self.norm.alone(x)
        x = self.activation(x if residual is None else x + residual)
        return x if skip is None else torch.cat([x, skip], 1)


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module does more than its forward pass: Grad-CAM, counters, `weight_norm`, pruning."""
    hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
    return any(hooks)


class Stage(nn.Module):
    """Convolutions that keep the shape, at one resolution; the residual is added before the last PReLU.

    Args:
        in_channels: channels of the input.
        channels: channels of every convolution's output.
        convolutions: how many.
        kernel_size: of each, along every axis.
        norm: one of `norm.KINDS`, or None.
    """

    def __init__(self, in_channels: int, channels: int, convolutions: int, kernel_size: int, norm: str | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _full(in_channels if i == 0 else channels, channels, kernel_size, norm) for i in range(convolutions)
        )

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The stage's output, (N, channels, D, H, W); `residual` has its shape, or one channel."""
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        return cast(Tensor, last(x, residual))


def _full(in_channels: int, channels: int, kernel_size: int, norm: str | None) -> Activated:
    """A convolution that keeps the shape, with norm and activation."""
    return Activated(Convolution, in_channels, channels, kernel_size, norm, padding=kernel_size // 2)


class VNet(nn.Module):
    """V-Net: volumes to logits.

    Args:
        in_channels: channels of the input, at least 1.
        num_classes: channels of the output, background included, at least 1.
        base_channels: channels of the first stage, doubled with every halving of the resolution.
        topology: `paper` (figure 2 of the paper) or `caffe` (the authors' released network).
        norm: None as in the paper, or `instance`, `batch` or `group`: normalisation between each convolution and its
            activation; see `Norm`.
        levels: resolutions, from 2 to 5 as in the paper. Fewer leave out the coarsest stages.
        kernel_size: of the stages' convolutions along every axis: 5 as in the paper, or 3, which takes about a fifth
            of the arithmetic.
        halvings: how many of the `levels` - 1 steps to the next resolution halve it along each axis (D, H, W); None as
            in the paper: all of them. Along an axis that has fewer, the first steps leave the resolution as it is:
            the network for volumes whose slices lie far apart.

    The input is added to the first stage's output, repeated over its channels (cyclically, if it has more than one).
    A shape that is not a multiple of 2^halvings along each axis, which is 16 for 5 levels, is padded with zeros on both
    sides, and the logits are cropped back. The network runs in channels-last 3D layout, whatever its input's.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797.
    """

    memory_format = torch.channels_last_3d

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 16,
        topology: str = "paper",
        norm: str | None = None,
        levels: int = LEVELS,
        kernel_size: int = KERNEL_SIZE,
        halvings: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_channels(in_channels=in_channels, num_classes=num_classes, base_channels=base_channels)
        check_form(topology, norm, levels, kernel_size, halvings)
        self.in_channels, self.num_classes, self.base_channels = in_channels, num_classes, base_channels
        self.topology, self.norm, self.levels, self.kernel_size = topology, norm, levels, kernel_size
        self.halvings = fewer_halvings(halvings, levels)
        self.strides = strides(levels, self.halvings)
        self.size_multiples = tuple(math.prod(along) for along in zip(*self.strides, strict=True))
        plan = TOPOLOGIES[topology]
        width = [base_channels * 2**level for level in range(levels)]
        self.left = nn.ModuleList(
            Stage(in_channels if level == 0 else width[level], width[level], count, kernel_size, norm)
            for level, count in enumerate(plan.left[:levels])
        )
        self.down = nn.ModuleList(
            Activated(Convolution, width[level], width[level + 1], stride, norm, stride)
            for level, stride in enumerate(self.strides)
        )
        # from the coarsest level up: the up-convolution gives as many channels as the skip brings
        entering = [width[-1], *(2 * channels for channels in width[-2:0:-1])]
        skipped = width[-2::-1]
        self.up = nn.ModuleList(
            Activated(UpConvolution, source, skip, stride, norm, stride)
            for source, skip, stride in zip(entering, skipped, reversed(self.strides), strict=True)
        )
        self.right = nn.ModuleList(
            Stage(2 * skip, 2 * skip, count, kernel_size, norm)
            for skip, count in zip(skipped, plan.right[-(levels - 1) :], strict=True)
        )
        last = 2 * base_channels
        self.wide_head = _full(last, num_classes, kernel_size, norm) if plan.wide_head else None
        self.head = Convolution(num_classes if plan.wide_head else last, num_classes, 1)
        initialise(self.head)
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing in torch's types

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of volumes.

        Args:
            x: (N, in_channels, D, H, W), floating point.

        Returns:
            (N, num_classes, D, H, W).

        Raises:
            ValueError: if `x` has another number of dimensions or channels, or is empty.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(f"x must have shape (N, {self.in_channels}, D, H, W); got {tuple(x.shape)}")
        shape = x.shape[2:]
        missing = [-length % multiple for length, multiple in zip(shape, self.size_multiples, strict=True)]
        before = [length // 2 for length in missing]
        if any(missing):
            # F.pad counts from the last axis
            pairs = [(b, m - b) for b, m in zip(before, missing, strict=True)]
            x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
        # a layout of volumes that `torch.func` has stacked can't be asked for
        x = x if is_transformed() else x.contiguous(memory_format=self.memory_format)
        logits = self._forward_padded(x)
        if any(missing):
            for axis, (start, length) in enumerate(zip(before, shape, strict=True), start=2):
                logits = logits.narrow(axis, start, length)
        return logits

    def _forward_padded(self, x: Tensor) -> Tensor:
        skips = []
        residual = self._repeated_input(x)
        for stage, down in zip(self.left, [*self.down, None], strict=True):
            x = stage(x, residual)
            if down is not None:
                skips.append(x)
                x = residual = down(x)
        for up, stage in zip(self.up, self.right, strict=True):
            x = up(x, skip=skips.pop())
            x = stage(x, x)
        if self.wide_head is not None:
            x = self.wide_head(x)
        return cast(Tensor, self.head(x))

    def _repeated_input(self, x: Tensor) -> Tensor:
        if self.in_channels == 1:
            return x
        channel = torch.arange(self.base_channels, device=x.device) % self.in_channels
        repeated = x.index_select(1, channel)
        return repeated if is_transformed() else repeated.contiguous(memory_format=self.memory_format)

    def receptive_fields(self) -> dict[str, int]:
        """The receptive field of every stage, in voxels of the input along the axis that is halved most often.

        Returns:
            voxels by the name of the stage: `left 1` … `left 5`, `right 4` … `right 1`, `output`.

        Source:
            Table 1 of the paper. As there, a 2x2x2 up-convolution counts as a kernel of two voxels of its output,
            although each of its outputs depends on a single voxel of its input.
        """
        fields = {}
        field, step = 1, 1

        def growth(layers: Iterable[nn.Module]) -> int:
            kernels = (max(cast(Activated, layer).convolution.kernel_size) for layer in layers)
            return sum((kernel - 1) * step for kernel in kernels)

        for level, stage in enumerate(self.left):
            field += growth(cast(Stage, stage).layers)
            fields[f"left {level + 1}"] = field
            if level < len(self.down):
                field += growth([self.down[level]])
                step *= max(self.strides[level])
        for level, (up, stage) in enumerate(zip(self.up, self.right, strict=True)):
            step //= max(self.strides[-1 - level])
            field += growth([up, *cast(Stage, stage).layers])
            fields[f"right {self.levels - 1 - level}"] = field
        if self.wide_head is not None:
            field += growth([self.wide_head])
        fields["output"] = field
        return fields
