"""The losses of regions that may overlap: each output is a region's own sigmoid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vnet_fast.nn.losses import DiceLoss
from vnet_fast.regions import MAX_LABEL

# a logit whose sigmoid is 0 in float32
CERTAIN = -1e4


class RegionLoss(nn.Module):
    """The Dice loss of regions of labels, with or without their binary cross-entropy.

    Args:
        labels: of each of R regions, 1 to 255.
        squared: whether the Dice loss is the paper's, with squares in the denominator and a mean over the volumes, and
            without cross-entropy. Otherwise its sums are over the batch, and the mean cross-entropy is added.
        ignored: the label whose voxels do not count; None if all do.

    Source:
        `DC_and_BCE_loss` of nnU-Net.
    """

    members: Tensor

    def __init__(self, labels: Sequence[Sequence[int]], squared: bool = False, ignored: int | None = None) -> None:
        super().__init__()
        if squared:
            self.dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)
        else:
            self.dice = DiceLoss(sigmoid=True, batch=True)
        self.squared, self.ignored = squared, ignored
        members = torch.zeros(len(labels), MAX_LABEL + 1, dtype=torch.uint8)
        for row, those in zip(members, labels, strict=True):
            row[list(those)] = 1
        if ignored is not None:
            # a region may name it where it stands for another label, which no mask has
            members[:, ignored] = 0
        self.register_buffer("members", members, persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: (N, R, *spatial) logits.
            target: (N, 1, *spatial) uint8 labels.

        Returns:
            a scalar.
        """
        # regions of a voxel side by side, as its logits lie, for the kernels
        inside = torch.stack([row[target[:, 0].int()] for row in self.members], dim=-1).movedim(-1, 1)
        count: Tensor | int = inside.numel()
        if self.ignored is not None:
            ignored = target == self.ignored
            # a probability of 0, as certain as a target of 0, adds nothing to any sum
            input = input.masked_fill(ignored, CERTAIN)
            count = (~ignored).sum().clamp(min=1) * len(self.members)
        dice: Tensor = self.dice(input, inside)
        if self.squared:
            return dice
        logits = input.float()
        return dice + F.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype), reduction="sum") / count
