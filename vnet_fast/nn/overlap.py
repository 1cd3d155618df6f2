"""What losses of the overlap of prediction and target share: their arguments, and the sums that they are made of."""

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from vnet_fast.distributed import all_reduce_sum
from vnet_fast.ops.dice import DiceOptions, dice_sums

REDUCTIONS = ("none", "mean", "sum")


class OverlapLoss(nn.Module):
    """Sums over the voxels of each (volume, class), with the arguments of MONAI's losses.

    Args:
        include_background: whether class 0 counts.
        to_onehot_y: whether `target` holds class indices, (N, 1, *spatial).
        sigmoid: applies a sigmoid to `input`.
        softmax: applies a softmax over the classes to `input`.
        other_act: a function that is applied to `input` instead of these two.
        reduction: `mean`, `sum` or `none`.
        batch: sums over the volumes of the batch too, and where a gradient is needed over those of all processes that
            train together.
        soft_label: computes the intersection so that it is right for targets between 0 and 1.
        ignore_index: the label whose voxels do not count.
        squared_pred: sums p² and g² instead of p and g.

    Raises:
        TypeError: if `other_act` is not callable.
        ValueError: if more than one activation is given, or `reduction` is unknown.
    """

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[[Tensor], Tensor] | None,
        reduction: str,
        batch: bool,
        soft_label: bool,
        ignore_index: int | None = None,
        squared_pred: bool = False,
    ) -> None:
        super().__init__()
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act must be None or callable; got {type(other_act).__name__}")
        if bool(sigmoid) + bool(softmax) + (other_act is not None) > 1:
            raise ValueError("sigmoid, softmax and other_act exclude each other; got more than one of them")
        # MONAI's own enumeration of reductions is accepted too
        self.reduction = checked_reduction(getattr(reduction, "value", reduction))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.batch = batch
        self.soft_label = soft_label
        self.ignore_index = ignore_index
        self.squared_pred = squared_pred

    def sums(self, input: Tensor, target: Tensor) -> Tensor:
        """Intersection, prediction and ground truth.

        Args:
            input: (N, C, *spatial) logits or probabilities.
            target: (N, C, *spatial), or (N, 1, *spatial) class indices with `to_onehot_y`.

        Returns:
            (3, N, C'), or (3, C') with `batch`, where C' is the number of classes that count.

        Raises:
            AssertionError: if the shapes do not match.
            ValueError: if `input` has no spatial axis.
        """
        check_spatial(input)
        # warns as if in the call of the loss, as MONAI does
        options = self.options(input.shape[1], stacklevel=5)
        if self.other_act is not None:
            input = self.other_act(input)
        check_shapes(input, target, options.labels)
        return self.over_batch(dice_sums(input, target, options))

    def over_batch(self, sums: Tensor) -> Tensor:
        """(3, N, C') sums as they are, or with `batch` those of all volumes, (3, C')."""
        if not self.batch:
            return sums
        # without a gradient, a process may be alone in computing a loss, and would wait for the others for ever
        return all_reduce_sum(sums.sum(1)) if sums.requires_grad else sums.sum(1)

    def options(self, num_classes: int, stacklevel: int) -> DiceOptions:
        """The options of the sums. With a single class some settings mean nothing: they are ignored with a warning."""
        softmax, labels, background = self.softmax, self.to_onehot_y, self.include_background
        if num_classes == 1:
            for name, ignored in (
                ("softmax=True", softmax),
                ("to_onehot_y=True", labels),
                ("include_background=False", not background),
            ):
                if ignored:
                    warn_of_single_channel(name, stacklevel)
            softmax, labels, background = False, False, True
        return DiceOptions(
            activation="softmax" if softmax else "sigmoid" if self.sigmoid else "none",
            labels=labels,
            first_class=0 if background else 1,
            squared=self.squared_pred,
            soft=self.soft_label,
            ignore_index=self.ignore_index,
        )

    def reduced(self, loss: Tensor) -> Tensor:
        """The loss of each volume and class by its reduction; `none` leaves it as it is."""
        reduction = checked_reduction(self.reduction)
        if reduction == "mean":
            return loss.mean()
        return loss.sum() if reduction == "sum" else loss


def with_spatial_axes(loss: Tensor, input_ndim: int) -> Tensor:
    """A loss with an axis of length 1 for each spatial axis of the input; a scalar stays one."""
    return loss.reshape(*loss.shape, *[1] * (input_ndim - 2)) if loss.ndim else loss


def checked_reduction(reduction: str) -> str:
    """The name of a reduction, or a ValueError."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return reduction


def check_spatial(input: Tensor) -> None:
    """Raises a ValueError if an input has no spatial axis."""
    if input.ndim < 3:
        raise ValueError(f"input must have shape (N, C, *spatial); got {tuple(input.shape)}")


def check_shapes(input: Tensor, target: Tensor, labels: bool) -> None:
    """Raises an AssertionError, as MONAI does, if a target's shape is not the one that an input needs."""
    needed = (input.shape[0], 1 if labels else input.shape[1], *input.shape[2:])
    if tuple(target.shape) != needed:
        raise AssertionError(f"target must have shape {needed} to match input; got {tuple(target.shape)}")


def warn_of_single_channel(name: str, stacklevel: int) -> None:
    """Warns, in MONAI's words, of a setting that means nothing for one class."""
    warnings.warn(f"single channel prediction, `{name}` ignored.", stacklevel=stacklevel)
