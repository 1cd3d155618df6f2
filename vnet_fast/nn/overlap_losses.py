"""Relatives of the Dice loss that are made of the same sums: Tversky's and the generalised Dice loss."""

from collections.abc import Callable

import torch
from torch import Tensor

from vnet_fast.nn.overlap import OverlapLoss, with_spatial_axes

WEIGHTS = ("square", "simple", "uniform")


class TverskyLoss(OverlapLoss):
    """1 - Tversky's index, for each volume and class: a drop-in for `monai.losses.TverskyLoss` of MONAI 1.6.

    Tversky's index = (Σ p g + smooth_nr) / (Σ p g + alpha Σ p (1 - g) + beta Σ (1 - p) g + smooth_dr), with sums over
    the voxels. Sums and loss are float32 for half precision too, and float64 for float64 input.

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act: as for `DiceLoss`.
        alpha: the weight of false positives.
        beta: the weight of false negatives.
        reduction, smooth_nr, smooth_dr, batch, soft_label, ignore_index: as for `DiceLoss`.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, or `reduction` is unknown.

    Source:
        Salehi et al. 2017; arguments, order and defaults of MONAI.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, batch, soft_label, ignore_index
        )
        self.alpha = alpha
        self.beta = beta
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input, target: as for `DiceLoss`.

        Returns:
            a scalar; with `reduction="none"` (N, C'), or (C',) with `batch`, where C' is the number of classes that
            count.

        Raises:
            AssertionError: if the shapes do not match.
            ValueError: if `input` has no spatial axis.
        """
        intersection, prediction, ground = self.sums(input, target)
        errors = self.alpha * (prediction - intersection) + self.beta * (ground - intersection)
        return self.reduced(1 - (intersection + self.smooth_nr) / (intersection + errors + self.smooth_dr))


class GeneralizedDiceLoss(OverlapLoss):
    """1 - Dice of all classes together, weighted by their size: `monai.losses.GeneralizedDiceLoss` of MONAI 1.6.

    Generalised Dice = (2 Σ_k w_k Σ p g + smooth_nr) / (Σ_k w_k (Σ p + Σ g) + smooth_dr), with a weight for each class
    by its Σ g: 1 / (Σ g)² (`square`), 1 / Σ g (`simple`) or 1 (`uniform`). A class without voxels has the largest of
    the other weights. Sums, weights and loss are float32 for half precision too, and float64 for float64 input, where
    MONAI's weights are float32.

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act: as for `DiceLoss`.
        w_type: `square`, `simple` or `uniform`.
        reduction, smooth_nr, smooth_dr, batch, soft_label: as for `DiceLoss`.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, or `reduction` or `w_type` is unknown.

    Source:
        Sudre et al. 2017; arguments, order and defaults of MONAI.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, batch, soft_label)
        # MONAI's own enumeration of weights is accepted too
        self.w_type = getattr(w_type, "value", w_type)
        if self.w_type not in WEIGHTS:
            raise ValueError(f"w_type must be one of {', '.join(WEIGHTS)}; got {w_type!r}")
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input, target: as for `DiceLoss`.

        Returns:
            a scalar; with `reduction="none"` (N, 1, 1, …), or (1, 1, …) with `batch`.

        Raises:
            AssertionError: if the shapes do not match.
            ValueError: if `input` has no spatial axis.
        """
        intersection, prediction, ground = self.sums(input, target)
        weight = self._weight(ground)
        numerator = 2 * (intersection * weight).sum(-1, keepdim=True) + self.smooth_nr
        denominator = ((prediction + ground) * weight).sum(-1, keepdim=True) + self.smooth_dr
        return with_spatial_axes(self.reduced(1 - numerator / denominator), input.ndim)

    def _weight(self, ground: Tensor) -> Tensor:
        """The weight of each class, the last axis."""
        if self.w_type == "uniform":
            return torch.ones_like(ground)
        weight = 1 / (ground if self.w_type == "simple" else ground.square())
        finite = weight.masked_fill(weight.isinf(), 0)
        return torch.where(weight.isinf(), finite.amax(-1, keepdim=True), finite)
