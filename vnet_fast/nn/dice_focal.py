"""The Dice loss plus a focal loss, from one pass over logits and target."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.nn.compound import check_axes, check_factors, dice_and_sums
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.overlap import check_shapes, warn_of_single_channel
from vnet_fast.ops.dice import DiceOptions, dice_sums, one_hot
from vnet_fast.ops.entropy import binary_loss


class DiceFocalLoss(nn.Module):
    """lambda_dice · Dice loss + lambda_focal · focal loss: a drop-in for `monai.losses.DiceFocalLoss` of MONAI 1.6.

    The focal loss of a logit x with target g is (1 - p)^gamma (-log p), where p is the sigmoid of x if g is 1, and of
    -x if it is 0. It averages over voxels, and then as `reduction` says. Both losses are made of sums of one pass,
    except with `reduction="none"`, `other_act`, or an `alpha` for each class and channels of floating point as target.
    They are float32 for half precision too, and float64 for float64 input, where MONAI's focal loss is float32.

    Args:
        include_background: whether class 0 counts, for both.
        to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard: of the Dice loss, as for `DiceLoss`.
        reduction: `mean`, `sum` or `none`.
        smooth_nr, smooth_dr, batch: of the Dice loss, as for `DiceLoss`.
        gamma: the exponent of the focal loss.
        weight: a factor for every class that counts, or one for all classes; not negative.
        lambda_dice: the weight of the Dice loss; not negative.
        lambda_focal: the weight of the focal loss; not negative.
        alpha: None, or a factor of the focal loss where the target is 1, while 1 - alpha is that where it is 0. A
            sequence has a factor for every class that counts, and changes nothing where the target is 0.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, `reduction` is unknown, or a weight of a loss is negative.

    Source:
        Lin et al. 2017; arguments, order and defaults of MONAI.
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
        gamma: float = 2.0,
        weight: Any = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: Any = None,
    ) -> None:
        super().__init__()
        self.dice = DiceLoss(
            include_background, to_onehot_y, sigmoid, softmax, other_act, squared_pred, jaccard, reduction, smooth_nr,
            smooth_dr, batch, weight,
        )  # fmt: skip
        self.focal = _FocalLoss(gamma, alpha, weight)
        check_factors(lambda_dice=lambda_dice, lambda_focal=lambda_focal)
        self.lambda_dice = lambda_dice
        self.lambda_focal = lambda_focal

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            input: (N, C, *spatial) logits, floating point, 1 to 3 spatial axes.
            target: (N, C, *spatial), or (N, 1, *spatial) class indices with `to_onehot_y`; of any type.

        Returns:
            a scalar; with `reduction="none"` (N, C', *spatial), where C' is the number of classes that count.

        Raises:
            AssertionError: if the shapes do not match.
            ValueError: if the numbers of axes or channels do not match, `input` has no spatial axis, `weight` has a
                negative entry, or `weight` or `alpha` has not one entry per class.
        """
        check_axes(input, target)
        options = self.dice.options(input.shape[1], stacklevel=4)
        if not self.dice.include_background and not options.first_class:
            # MONAI's focal loss says it too
            warn_of_single_channel("include_background=False", stacklevel=3)
        check_shapes(input, target, options.labels)
        focal, first = self.focal, options.first_class
        focal.check(input.shape[1] - first)
        if self.dice.reduction == "none" or focal.needs_voxels(options.labels, target):
            activated = input if self.dice.other_act is None else self.dice.other_act(input)
            sums = self.dice.over_batch(dice_sums(activated, target, options))
            dice, entropy = self.dice.of_sums(sums, input.ndim), focal.of_voxels(input, target, options)
            entropy = entropy if self.dice.reduction == "none" else entropy.flatten(2).mean(2)
        else:
            dice, sums = dice_and_sums(self.dice, input, target, options, "sigmoid", focal.gamma)
            entropy = focal.of_sums(sums[3:, :, first:]) / math.prod(target.shape[2:])
        return self.lambda_dice * dice + self.lambda_focal * self.dice.reduced(entropy)


class _FocalLoss(nn.Module):
    """The focal loss of sigmoids, without its reduction."""

    def __init__(self, gamma: float, alpha: Any, weight: Any) -> None:
        super().__init__()
        self.gamma = float(gamma)
        factors = None if alpha is None else torch.as_tensor(alpha)
        self.alpha = None if factors is None or factors.ndim else float(factors)
        self.class_alpha: Tensor | None
        self.register_buffer("class_alpha", None if self.alpha is not None else factors, persistent=False)
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self._negative_weight = self.class_weight is not None and bool((self.class_weight < 0).any())

    def check(self, num_classes: int) -> None:
        """Raises a ValueError if factors are not of so many classes, or a weight is negative."""
        weight, alpha = self.class_weight, self.class_alpha
        if weight is not None and weight.ndim > 0 and (num_classes == 1 or weight.numel() != num_classes):
            raise ValueError(
                f"weight must be one number, or have one for each of several classes, here {num_classes}; "
                f"got {weight.numel()}"
            )
        if self._negative_weight:
            raise ValueError("weight must not be negative")
        if alpha is not None and len(alpha) != num_classes:
            raise ValueError(f"alpha must have {num_classes} entries, one for each class; got {len(alpha)}")

    def needs_voxels(self, labels: bool, target: Tensor) -> bool:
        """Whether the sums do not tell enough: whether a target is exactly 1."""
        return self.class_alpha is not None and not labels and target.is_floating_point()

    def of_sums(self, sums: Tensor) -> Tensor:
        """(N, C'): the sum over the voxels, from (2, N, C') sums where the target is 1, and where it is 0."""
        inside, outside = sums
        if self.class_alpha is not None:
            inside = inside * self.class_alpha.to(sums)
        elif self.alpha is not None:
            inside, outside = inside * self.alpha, outside * (1 - self.alpha)
        loss: Tensor = inside + outside
        return loss if self.class_weight is None else loss * self.class_weight.to(loss)

    def of_voxels(self, input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
        """(N, C', *spatial): the loss of each voxel."""
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        g = one_hot(target, input.shape[1], None, x.dtype) if options.labels else target.to(x.dtype)
        x, g = x[:, options.first_class :], g[:, options.first_class :]
        loss, shape = binary_loss(x, g, options.labels, self.gamma), (-1, *[1] * (input.ndim - 2))
        if self.class_alpha is not None:
            loss = loss * torch.where(g == 1, self.class_alpha.to(loss).reshape(shape), 1)
        elif self.alpha is not None:
            loss = loss * (g * self.alpha + (1 - g) * (1 - self.alpha))
        return loss if self.class_weight is None else loss * self.class_weight.to(loss).reshape(shape)
