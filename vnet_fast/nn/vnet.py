"""V-Net: the volumetric, fully convolutional network of Milletari, Navab and Ahmadi (2016)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from vnet_fast.nn.convolution import convolve
from vnet_fast.ops.add_prelu import add_prelu, add_prelu_join

KERNEL_SIZE = 5
DOWN_FACTOR = 2
LEVELS = 5
SIZE_MULTIPLE = DOWN_FACTOR ** (LEVELS - 1)
INITIAL_SLOPE = 0.25


@dataclass(frozen=True)
class Topology:
    """How many 5x5x5 convolutions each stage has, from the input to the output."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    # whether a 5x5x5 convolution to the classes stands before the 1x1x1 one
    wide_head: bool


TOPOLOGIES = {
    # figure 2 of the paper
    "paper": Topology(left=(1, 2, 3, 3, 3), right=(3, 3, 2, 1), wide_head=False),
    # the network that the authors released
    "caffe": Topology(left=(1, 1, 2, 3, 3), right=(3, 2, 1, 1), wide_head=True),
}


def initialise(module):
    """Draws the weights of a convolution as the authors' release does: He et al. 2015 with the
    mean of fan-in and fan-out, zero biases.
    """
    fan = (module.in_channels + module.out_channels) / 2 * math.prod(module.kernel_size)
    nn.init.normal_(module.weight, std=math.sqrt(2 / fan))
    nn.init.zeros_(module.bias)


class Activated(nn.Module):
    """A convolution and the PReLU behind it."""

    def __init__(self, convolution):
        super().__init__()
        initialise(convolution)
        self.convolution = convolution
        self.activation = nn.PReLU(convolution.out_channels, init=INITIAL_SLOPE)

    def forward(self, x, residual=None, skip=None):
        """PReLU(convolution(x) + residual), followed by `skip` along the channels if that is given."""
        x, bias = convolve(self.convolution, x)
        if skip is not None:
            return add_prelu_join(x, self.activation.weight, bias, skip)
        return add_prelu(x, self.activation.weight, bias, residual)


class Stage(nn.Module):
    """Convolutions of 5x5x5 at one resolution; the residual is added before the last PReLU.

    Args:
        in_channels: channels of the input.
        channels: channels of every convolution's output.
        convolutions: how many.
    """

    def __init__(self, in_channels, channels, convolutions):
        super().__init__()
        self.layers = nn.ModuleList(
            Activated(nn.Conv3d(in_channels if i == 0 else channels, channels, KERNEL_SIZE, padding=KERNEL_SIZE // 2))
            for i in range(convolutions)
        )

    def forward(self, x, residual):
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        return last(x, residual)


class VNet(nn.Module):
    """V-Net: volumes to logits.

    Args:
        in_channels: channels of the input, at least 1.
        num_classes: channels of the output, background included, at least 1.
        base_channels: channels of the first stage, doubled with every halving of the resolution.
        topology: `paper` (figure 2 of the paper) or `caffe` (the authors' released network).

    The input is added to the first stage's output, repeated over its channels (cyclically, where
    it has more than one). A size that is not a multiple of 16 is padded with zeros on both sides
    and the logits are cropped back. It runs in channels-last 3D layout whatever the input's.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv 1606.04797.
    """

    memory_format = torch.channels_last_3d

    def __init__(self, in_channels=1, num_classes=2, base_channels=16, topology="paper"):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        if not isinstance(base_channels, int) or base_channels < 1:
            raise ValueError(f"base_channels must be a positive integer; got {base_channels!r}")
        if topology not in TOPOLOGIES:
            raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}; got {topology!r}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.base_channels = base_channels
        self.topology = topology
        plan = TOPOLOGIES[topology]
        width = [base_channels * 2**level for level in range(LEVELS)]

        self.left = nn.ModuleList(
            Stage(in_channels if level == 0 else width[level], width[level], count)
            for level, count in enumerate(plan.left)
        )
        self.down = nn.ModuleList(
            Activated(nn.Conv3d(width[level], width[level + 1], DOWN_FACTOR, stride=DOWN_FACTOR))
            for level in range(LEVELS - 1)
        )
        # from the coarsest level up: the up-convolution gives as many channels as the skip brings
        entering = [width[-1], *(2 * channels for channels in width[-2:0:-1])]
        skipped = width[-2::-1]
        self.up = nn.ModuleList(
            Activated(nn.ConvTranspose3d(source, skip, DOWN_FACTOR, stride=DOWN_FACTOR))
            for source, skip in zip(entering, skipped, strict=True)
        )
        self.right = nn.ModuleList(
            Stage(2 * skip, 2 * skip, count) for skip, count in zip(skipped, plan.right, strict=True)
        )
        last = 2 * base_channels
        self.wide_head = None
        if plan.wide_head:
            self.wide_head = Activated(nn.Conv3d(last, num_classes, KERNEL_SIZE, padding=KERNEL_SIZE // 2))
            last = num_classes
        self.head = nn.Conv3d(last, num_classes, 1)
        initialise(self.head)
        self.to(memory_format=self.memory_format)

    def forward(self, x):
        """Logits of a batch of volumes.

        Args:
            x: (N, in_channels, D, H, W), floating point.

        Returns:
            (N, num_classes, D, H, W).

        Raises:
            ValueError: if `x` has another number of dimensions or channels, or an empty one.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(f"x must have shape (N, {self.in_channels}, D, H, W); got {tuple(x.shape)}")
        size = x.shape[2:]
        missing = [-length % SIZE_MULTIPLE for length in size]
        before = [length // 2 for length in missing]
        if any(missing):
            # F.pad counts from the last axis
            pairs = [(b, m - b) for b, m in zip(before, missing, strict=True)]
            x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
        logits = self._forward_padded(x.contiguous(memory_format=self.memory_format))
        if any(missing):
            for axis, (start, length) in enumerate(zip(before, size, strict=True), start=2):
                logits = logits.narrow(axis, start, length)
        return logits

    def _forward_padded(self, x):
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
        return self.head(x)

    def _repeated_input(self, x):
        if self.in_channels == 1:
            return x
        channel = torch.arange(self.base_channels, device=x.device) % self.in_channels
        return x.index_select(1, channel).contiguous(memory_format=self.memory_format)

    def receptive_fields(self):
        """Receptive field of every stage, in voxels of the input along one axis.

        Returns:
            dict from `left 1` … `left 5`, `right 4` … `right 1`, `output` to voxels.

        Source:
            Table 1 of the paper. As there, a 2x2x2 up-convolution counts as a kernel of two voxels
            of its output, though each of its outputs looks at a single voxel of its input.
        """
        fields = {}
        field, step = 1, 1

        def convolve(layers):
            return sum((layer.convolution.kernel_size[0] - 1) * step for layer in layers)

        for level, stage in enumerate(self.left):
            field += convolve(stage.layers)
            fields[f"left {level + 1}"] = field
            if level < len(self.down):
                field += convolve([self.down[level]])
                step *= DOWN_FACTOR
        for level, (up, stage) in enumerate(zip(self.up, self.right, strict=True)):
            step //= DOWN_FACTOR
            field += convolve([up, *stage.layers])
            fields[f"right {LEVELS - 1 - level}"] = field
        if self.wide_head is not None:
            field += convolve([self.wide_head])
        fields["output"] = field
        return fields
