"""The losses of the paper: Dice, and the weighted cross-entropy that it is compared with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.nn.overlap import OverlapLoss, checked_reduction, with_spatial_axes
from vnet_fast.ops.dice import DiceOptions, dice_sums

# cross-entropy by class; the other sums are not used
ENTROPY = DiceOptions("softmax", labels=True, entropy="softmax")


class DiceLoss(OverlapLoss):
    """1 - Dice, for each volume and class: a drop-in for `monai.losses.DiceLoss` of MONAI 1.6.

    Dice = (2 Σ p g + smooth_nr) / (Σ p + Σ g + smooth_dr), with sums over the voxels. Sums and loss are float32 for
    half precision too, where MONAI's sums overflow, and float64 for float64 input. Inputs are never written to. NaN
    in the input gives NaN.

    Args:
        include_background: whether class 0 counts.
        to_onehot_y: whether `target` holds class indices, (N, 1, *spatial).
        sigmoid: applies a sigmoid to `input`.
        softmax: applies a softmax over the classes to `input`.
        other_act: a function that is applied to `input` instead of these two.
        squared_pred: uses Σ p² and Σ g² in the denominator.
        jaccard: the Jaccard index instead of Dice.
        reduction: `mean`, `sum` or `none`.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.
        batch: sums over the volumes of the batch too, before the division. If several processes train
            (`torch.distributed`), the sums are over the volumes of all of them, unless no gradient is needed.
        weight: a factor for every class that counts, or one for all classes; not negative.
        soft_label: computes the intersection so that it is right for targets between 0 and 1.
        ignore_index: the label whose voxels do not count.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, or `reduction` is unknown.

    Source:
        Milletari, Navab, Ahmadi 2016, section 3; arguments, order and defaults of MONAI.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Any = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, batch, soft_label, ignore_index,
            squared_pred,
        )  # fmt: skip
        self.jaccard = jaccard
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        # checked here, because checking a tensor on a GPU in every step would wait for the GPU
        self._negative_weight = self.class_weight is not None and bool((self.class_weight < 0).any())

    @classmethod
    def paper(cls) -> "DiceLoss":
        """The paper's loss, on logits and class indices: softmax, foreground classes only, squares in the denominator,
        `smooth_nr=0`, `smooth_dr=1e-5`.
        """
        return cls(
            include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: (N, C, *spatial) logits or probabilities, floating point, 1 to 3 spatial axes.
            target: (N, C, *spatial), or (N, 1, *spatial) class indices with `to_onehot_y`; bool,
                integer or floating point.

        Returns:
            a scalar; with `reduction="none"` (N, C', 1, …), or (C', 1, …) with `batch`, where C' is the number of
            classes that count.

        Raises:
            AssertionError: if the shapes do not match.
            ValueError: if `input` has no spatial axis, or `weight` has a negative entry or not one entry per class.
        """
        return self.of_sums(self.sums(input, target), input.ndim)

    def of_sums(self, sums: Tensor, input_ndim: int) -> Tensor:
        """The loss of the sums of a batch.

        Args:
            sums: (3, N, C'), or (3, C') with `batch`: intersection, prediction and ground truth.
            input_ndim: the number of axes of the input.

        Returns:
            as `forward`.
        """
        intersection, prediction, ground = sums
        union = 2 * (prediction + ground - intersection) if self.jaccard else prediction + ground
        loss = 1 - (2 * intersection + self.smooth_nr) / (union + self.smooth_dr)
        return with_spatial_axes(self.reduced(self._weigh(loss)), input_ndim)

    def _weigh(self, loss: Tensor) -> Tensor:
        """Multiplies the loss of each class, the last axis, by its weight."""
        num_classes = loss.shape[-1]
        if self.class_weight is None or num_classes == 1:
            return loss
        if self.class_weight.ndim > 0 and self.class_weight.shape[0] != num_classes:
            raise ValueError(
                f"weight must have {num_classes} entries, one for each class that counts; "
                f"got {self.class_weight.shape[0]}"
            )
        if self._negative_weight:
            raise ValueError("weight must not be negative")
        return loss * self.class_weight.to(loss)


class WeightedCrossEntropy(nn.Module):
    """Multinomial logistic loss in which each class is weighted by the inverse of its share of the volume.

    The mean over the voxels of w·(-log p). A voxel of class k has w = V / n_k: n_k of the volume's V voxels have that
    class. So every class that is present has the same weight, and the loss is the sum of the classes' mean losses.
    Computed in float32 for half precision.

    Args:
        reduction: `mean`, `sum` or `none`, over the volumes of the batch.

    Raises:
        ValueError: if `reduction` is unknown.

    Source:
        The baseline of section 4 of the paper; weights of the authors' release.
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = checked_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: (N, C, *spatial) logits, floating point.
            target: (N, 1, *spatial) class indices 0 … C - 1 of any type.

        Returns:
            a scalar, or (N,) with `reduction="none"`; float32 (float64 for float64 input).

        Raises:
            ValueError: if the shapes do not match.
        """
        needed = (input.shape[0], 1, *input.shape[2:])
        if tuple(target.shape) != needed:
            raise ValueError(f"target must have shape {needed} to match input; got {tuple(target.shape)}")
        sums = dice_sums(input, target, ENTROPY)
        # the weights V / n_k, and the mean over V voxels
        loss = (sums[3] / sums[2].detach().clamp(min=1)).sum(1)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()
