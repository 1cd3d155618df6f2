"""The Dice loss plus cross-entropy, from one pass over logits and target."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from vnet_fast.nn.compound import check_axes, check_factors, dice_and_sums
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.overlap import check_shapes
from vnet_fast.ops.entropy import cross_entropy


class DiceCELoss(nn.Module):
    """lambda_dice · Dice loss + lambda_ce · cross-entropy: a drop-in for `monai.losses.DiceCELoss` of MONAI 1.6.

    The cross-entropy is that of a softmax over all classes, whatever the activation of the Dice loss, and for a single
    channel that of a sigmoid. Both losses are made of sums of one pass; only `other_act` needs two. They are float32
    for half precision too, and float64 for float64 input. A probability of 0 counts only where its class is the target.

    Args:
        include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard: of the Dice loss, as for
            `DiceLoss`.
        reduction: `mean` or `sum`.
        smooth_nr, smooth_dr, batch: of the Dice loss, as for `DiceLoss`.
        weight: a tensor with a factor for every class, also for the background if it does not count for Dice; for a
            single channel that of the foreground in the cross-entropy.
        lambda_dice: the weight of the Dice loss; not negative.
        lambda_ce: the weight of the cross-entropy; not negative.
        label_smoothing: the share of the target that is spread over all classes in the cross-entropy.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, `reduction` is unknown, or a weight of a loss is negative.

    Source:
        Arguments, order and defaults of MONAI.
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
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        reduction = getattr(reduction, "value", reduction)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum; got {reduction!r}")
        of_dice = weight if weight is None or include_background else weight[1:]
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, of_dice,
        )  # fmt: skip
        # they hold weights, settings and the names of both in a state dict
        self.cross_entropy = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=label_smoothing)
        self.binary_cross_entropy = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=weight)
        check_factors(lambda_dice=lambda_dice, lambda_ce=lambda_ce)
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: (N, C, *spatial) logits, floating point, 1 to 3 spatial axes.
            target: (N, C, *spatial), or (N, 1, *spatial) class indices with `to_onehot_y`; of any type.

        Returns:
            a scalar.

        Raises:
            AssertionError: if the shapes do not match.
            RuntimeError: if `weight` has not one entry for each class.
            ValueError: if the numbers of axes or channels do not match, `input` has no spatial axis, or `weight` has a
                negative entry or not one entry for each class.
        """
        check_axes(input, target)
        options = self.dice.options(input.shape[1], stacklevel=4)
        check_shapes(input, target, options.labels)
        if input.shape[1] == 1:
            dice, sums = dice_and_sums(self.dice, input, target, options, "sigmoid")
            entropy = self._binary(input, target, sums)
        else:
            smoothing, weight = self.cross_entropy.label_smoothing, self.cross_entropy.weight
            dice, sums = dice_and_sums(self.dice, input, target, options, "softmax", smoothed=smoothing > 0)
            voxels = None if options.labels else target.numel() // target.shape[1]
            entropy = cross_entropy(sums, weight, smoothing, self.cross_entropy.reduction, voxels)
        return self.lambda_dice * dice + self.lambda_ce * entropy

    def _binary(self, input: Tensor, target: Tensor, sums: Tensor) -> Tensor:
        """The cross-entropy of a single channel."""
        weight, reduction = self.binary_cross_entropy.pos_weight, self.binary_cross_entropy.reduction
        if weight is not None and weight.numel() > 1:
            # it varies along a spatial axis, to which PyTorch broadcasts it
            x, g = input.to(sums.dtype), target.to(sums.dtype)
            return F.binary_cross_entropy_with_logits(x, g, pos_weight=weight, reduction=reduction)
        inside, outside = sums[3].sum(), sums[4].sum()
        total = (inside if weight is None else inside * weight.to(sums).reshape(())) + outside
        return total / input.numel() if reduction == "mean" else total
