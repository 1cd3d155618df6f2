"""Losses for volumetric segmentation, as modules."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vnet_fast.distributed import all_reduce_sum
from vnet_fast.ops.dice import DiceOptions, dice_sums

REDUCTIONS = ("none", "mean", "sum")


class DiceLoss(nn.Module):
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
            (`torch.distributed`), the sums are over the volumes of all of them.
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
        super().__init__()
        if other_act is not None and not callable(other_act):
            raise TypeError(f"other_act must be None or callable; got {type(other_act).__name__}")
        if bool(sigmoid) + bool(softmax) + (other_act is not None) > 1:
            raise ValueError("sigmoid, softmax and other_act exclude each other; got more than one of them")
        # MONAI's own enumeration of reductions is accepted too
        self.reduction = _checked_reduction(getattr(reduction, "value", reduction))
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label
        self.ignore_index = ignore_index
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        # checked here, because checking a tensor on a GPU in every step would wait for the GPU
        self._negative_weight = self.class_weight is not None and bool(self.class_weight.min() < 0)

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
        if input.ndim < 3:
            raise ValueError(f"input must have shape (N, C, *spatial); got {tuple(input.shape)}")
        options = self._options(input.shape[1])
        if self.other_act is not None:
            input = self.other_act(input)
        needed = (input.shape[0], 1 if options.labels else input.shape[1], *input.shape[2:])
        if tuple(target.shape) != needed:
            raise AssertionError(f"target must have shape {needed} to match input; got {tuple(target.shape)}")

        sums = dice_sums(input, target, options)
        if self.batch:
            sums = all_reduce_sum(sums.sum(1))
        intersection, prediction, ground = sums
        union = 2 * (prediction + ground - intersection) if self.jaccard else prediction + ground
        loss = 1 - (2 * intersection + self.smooth_nr) / (union + self.smooth_dr)
        return self._reduce(self._weigh(loss), input.ndim)

    def _options(self, num_classes: int) -> DiceOptions:
        """The options of the sums. With a single class some settings mean nothing: they are ignored with a warning."""
        softmax, labels, background = self.softmax, self.to_onehot_y, self.include_background
        if num_classes == 1:
            for name, ignored in (
                ("softmax=True", softmax),
                ("to_onehot_y=True", labels),
                ("include_background=False", not background),
            ):
                if ignored:
                    warnings.warn(f"single channel prediction, `{name}` ignored.", stacklevel=3)
            softmax, labels, background = False, False, True
        return DiceOptions(
            activation="softmax" if softmax else "sigmoid" if self.sigmoid else "none",
            labels=labels,
            first_class=0 if background else 1,
            squared=self.squared_pred,
            soft=self.soft_label,
            ignore_index=self.ignore_index,
        )

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

    def _reduce(self, loss: Tensor, input_ndim: int) -> Tensor:
        reduction = _checked_reduction(self.reduction)
        if reduction == "mean":
            return loss.mean()
        if reduction == "sum":
            return loss.sum()
        return loss.reshape(*loss.shape, *[1] * (input_ndim - 2))


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
        self.reduction = _checked_reduction(reduction)

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
        logits = input.to(torch.promote_types(input.dtype, torch.float32))
        labels = target[:, 0].flatten(1)
        if labels.is_floating_point():
            labels = labels.long()
        voxels = labels.shape[1]
        counts = torch.stack([(labels == k).sum(1) for k in range(input.shape[1])], 1).to(logits.dtype)
        weight = (voxels / counts.clamp(min=1)).gather(1, labels.long())
        # not F.cross_entropy, which has no deterministic implementation for volumes on a GPU
        log_probability: Tensor = _OfLabel.apply(  # type: ignore[no-untyped-call]  # it has no types
            torch.log_softmax(logits.flatten(2), 1), labels
        )
        loss = -(weight * log_probability).mean(1)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


class _OfLabel(torch.autograd.Function):
    """(N, V): of each voxel of x, (N, C, V), the entry that its label names.

    Where algorithms are deterministic, PyTorch's gradient of `gather` waits for the GPU, so that a CUDA graph can't
    hold it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(labels)
        ctx.num_classes = x.shape[1]
        return x.gather(1, labels.long()[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (labels,) = ctx.saved_tensors
        # a number and not a flag, which a CPU multiplies slowly
        is_label = grad.new_empty((len(labels), ctx.num_classes, labels.shape[1]))
        for k in range(ctx.num_classes):
            is_label[:, k] = labels == k
        return is_label.mul_(grad[:, None]), None


def _checked_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return reduction
