"""The Dice loss, and the Dice loss plus cross-entropy, with the arguments of nnU-Net's."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vnet_fast.distributed import all_reduce_sum
from vnet_fast.ops.dice import DiceOptions, dice_sums
from vnet_fast.ops.entropy import cross_entropy

# the label of voxels that do not count, which is no class
IGNORED = -1
# the smallest denominator, as in nnU-Net
MIN_DENOMINATOR = 1e-8


class SoftDiceLoss(nn.Module):
    """-Dice, the mean over volumes and classes: nnU-Net's `SoftDiceLoss` of version 2.8.

    Dice = (2 Σ p g + smooth) / max(Σ p + Σ g + smooth, 1e-8), with sums over the voxels. Sums and loss are float32
    for half precision too, and float64 for float64 input.

    Args:
        apply_nonlin: a function that makes probabilities of `x`, or None if it holds them. A softmax
            over axis 1 (`nn.Softmax(1)`, `functools.partial(torch.softmax, dim=1)`, nnU-Net's
            `softmax_helper_dim1`) and a sigmoid (`torch.sigmoid`, `nn.Sigmoid()`) are part of the
            fused sums; any other is applied before them.
        batch_dice: sums over the volumes of the batch too, before the division.
        do_bg: whether class 0 counts.
        smooth: added to the numerator and to the denominator.
        ddp: with `batch_dice`, sums over the volumes of all processes that train together (`torch.distributed`).
            It has no effect in a single process, where nnU-Net's loss fails.
        clip_tp: None, or a lower bound of Σ p g.

    Source:
        Isensee et al. 2021 (nnU-Net); arguments, order and defaults of `nnunetv2.training.loss.dice`.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[Tensor], Tensor] | None = None,
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1.0,
        ddp: bool = True,
        clip_tp: float | None = None,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = float(smooth)
        self.ddp = ddp
        self.clip_tp = clip_tp
        self._activation = _fused_activation(apply_nonlin)

    def forward(self, x: Tensor, y: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            x: (N, C, *spatial) logits, or probabilities without `apply_nonlin`; floating point.
            y: (N, C, *spatial) numbers, one-hot or for regions that overlap; or class indices
                0 … C - 1, (N, 1, *spatial) or (N, *spatial). Of any type. With one class, numbers.
            loss_mask: None, or (N, 1, *spatial) factors of the voxels. Of type bool, as nnU-Net's is,
                it costs no pass of its own with class indices.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not match, or no class counts.
        """
        if y.ndim == x.ndim - 1:
            y = y[:, None]
        labels = y.shape != x.shape
        self._check(x, y, loss_mask)
        activation = self._activation
        if activation is None:
            assert self.apply_nonlin is not None
            x, activation = self.apply_nonlin(x), "none"
        first_class = 0 if self.do_bg else 1
        if loss_mask is None:
            sums = dice_sums(x, y, DiceOptions(activation, labels, first_class))
        elif labels and loss_mask.dtype == torch.bool:
            y = y.to(torch.promote_types(y.dtype, torch.int8)).masked_fill(~loss_mask, IGNORED)
            sums = dice_sums(x, y, DiceOptions(activation, labels, first_class, ignore_index=IGNORED))
        else:
            options = DiceOptions("none", labels, first_class)
            sums = _weighted_sums(_activated(x, activation), y, loss_mask, options)
        return self.of_sums(sums)

    def of_sums(self, sums: Tensor) -> Tensor:
        """The loss of (3, N, C') sums: intersection, prediction and ground truth of the classes that count."""
        if self.batch_dice:
            sums = sums.sum(1)
            sums = all_reduce_sum(sums) if self.ddp else sums
        return -self._dice(*sums).mean()

    def _dice(self, intersection: Tensor, prediction: Tensor, ground: Tensor) -> Tensor:
        denominator = prediction + ground
        if self.clip_tp is not None:
            clipped = intersection.clamp(min=self.clip_tp)
            # prediction and ground truth outside of the intersection stay as they are
            denominator = denominator + 2 * (clipped - intersection)
            intersection = clipped
        return (2 * intersection + self.smooth) / (denominator + self.smooth).clamp(min=MIN_DENOMINATOR)

    def _check(self, x: Tensor, y: Tensor, loss_mask: Tensor | None) -> None:
        one_channel = (x.shape[0], 1, *x.shape[2:])
        if y.shape not in (x.shape, one_channel):
            raise ValueError(f"y must have shape {tuple(x.shape)} or {one_channel} to match x; got {tuple(y.shape)}")
        if loss_mask is not None and loss_mask.shape != one_channel:
            raise ValueError(f"loss_mask must have shape {one_channel} to match x; got {tuple(loss_mask.shape)}")
        if not self.do_bg and x.shape[1] == 1:
            raise ValueError("do_bg must be True for an x of one class: without the background no class is left")


# nnU-Net's loss of this name has the same sums, needs less memory, and lacks clip_tp, the last argument
MemoryEfficientSoftDiceLoss = SoftDiceLoss


class DC_and_CE_loss(nn.Module):  # noqa: N801 - nnU-Net's name
    """weight_dice · Dice loss + weight_ce · cross-entropy: nnU-Net's `DC_and_CE_loss` of version 2.8.

    Both losses are made of sums of one pass over logits and labels, also where a label is ignored. They are float32
    for half precision too, and float64 for float64 input. Where no voxel counts, the cross-entropy is 0; unlike
    nnU-Net's, it does not wait for the GPU to find out.

    Args:
        soft_dice_kwargs: arguments of the Dice loss, but `apply_nonlin`, which is a softmax over the classes.
        ce_kwargs: arguments of `torch.nn.CrossEntropyLoss`. It is not written to.
        weight_ce: the weight of the cross-entropy.
        weight_dice: the weight of the Dice loss.
        ignore_label: None, or the label whose voxels do not count.
        dice_class: the class of the Dice loss. Only `SoftDiceLoss` is part of the fused pass.

    Source:
        Isensee et al. 2021 (nnU-Net); arguments, order and defaults of `nnunetv2.training.loss.compound_losses`.
    """

    def __init__(
        self,
        soft_dice_kwargs: Mapping[str, Any],
        ce_kwargs: Mapping[str, Any],
        weight_ce: float = 1,
        weight_dice: float = 1,
        ignore_label: int | None = None,
        dice_class: Callable[..., nn.Module] = SoftDiceLoss,
    ) -> None:
        super().__init__()
        ignored = {} if ignore_label is None else {"ignore_index": ignore_label}
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ignore_label = ignore_label
        # it holds weights and settings
        self.ce = nn.CrossEntropyLoss(**{**ce_kwargs, **ignored})
        self.dc = dice_class(apply_nonlin=nn.Softmax(1), **soft_dice_kwargs)

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            net_output: (N, C, *spatial) logits, floating point.
            target: (N, 1, *spatial) class indices of any type.

        Returns:
            a scalar; with `reduction="none"` among `ce_kwargs` (N, *spatial).

        Raises:
            AssertionError: if the target has another shape.
        """
        needed = (net_output.shape[0], 1, *net_output.shape[2:])
        if tuple(target.shape) != needed:
            raise AssertionError(f"target must have shape {needed} to match net_output; got {tuple(target.shape)}")
        if self.ce.reduction == "none" or not self._is_fused(net_output.shape[1]):
            dice, entropy = self._dice(net_output, target), self._entropy(net_output, target)
            return self.weight_ce * entropy + self.weight_dice * dice
        sums = dice_sums(net_output, target, self._options(self.ignore_label))
        loss = sums.new_zeros(())
        if self.weight_ce:
            loss = loss + self.weight_ce * self._entropy_of(sums)
        if self.weight_dice:
            dice_loss = cast(SoftDiceLoss, self.dc)
            loss = loss + self.weight_dice * dice_loss.of_sums(sums[:3, :, 0 if dice_loss.do_bg else 1 :])
        return loss

    def _is_fused(self, num_classes: int) -> bool:
        """Whether both losses are made of the same sums, and the same voxels count for them."""
        same_voxels = self.ignore_label is not None or not 0 <= self.ce.ignore_index < num_classes
        return same_voxels and type(self.dc) is SoftDiceLoss

    def _options(self, ignored: int | None) -> DiceOptions:
        return DiceOptions("softmax", True, 0, False, False, ignored, "softmax", None, self.ce.label_smoothing > 0)

    def _entropy_of(self, sums: Tensor) -> Tensor:
        return cross_entropy(sums, self.ce.weight, self.ce.label_smoothing, self.ce.reduction, None)

    def _dice(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The Dice loss by itself."""
        if not self.weight_dice:
            return net_output.new_zeros(())
        mask = None if self.ignore_label is None else target != self.ignore_label
        loss: Tensor = self.dc(net_output, target if mask is None else target.where(mask, 0), loss_mask=mask)
        return loss

    def _entropy(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy by itself."""
        if not self.weight_ce:
            return net_output.new_zeros(())
        if self.ce.reduction != "none":
            return self._entropy_of(dice_sums(net_output, target, self._options(self.ce.ignore_index)))
        x = net_output.to(torch.promote_types(net_output.dtype, torch.float32))
        weight, ignored = self.ce.weight if self.ce.weight is None else self.ce.weight.to(x), self.ce.ignore_index
        smoothing = self.ce.label_smoothing
        return F.cross_entropy(
            x, target[:, 0].long(), weight, ignore_index=ignored, reduction="none", label_smoothing=smoothing
        )


def _fused_activation(apply_nonlin: object) -> str | None:
    """The name of a function among the activations of `dice_sums`, or None."""
    if apply_nonlin is None:
        return "none"
    if apply_nonlin in (torch.sigmoid, torch.special.expit, F.sigmoid) or type(apply_nonlin) is nn.Sigmoid:
        return "sigmoid"
    if type(apply_nonlin) is nn.Softmax and apply_nonlin.dim == 1:
        return "softmax"
    if isinstance(apply_nonlin, functools.partial) and apply_nonlin.func in (torch.softmax, F.softmax):
        over_classes = not apply_nonlin.args and apply_nonlin.keywords == {"dim": 1}
        return "softmax" if over_classes else None
    # nnU-Net's own function can only be given if nnU-Net has been imported
    helpers = sys.modules.get("nnunetv2.utilities.helpers")
    if helpers is not None and apply_nonlin is getattr(helpers, "softmax_helper_dim1", None):
        return "softmax"
    return None


def _activated(x: Tensor, activation: str) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if activation == "softmax":
        return torch.softmax(x, 1)
    return torch.sigmoid(x) if activation == "sigmoid" else x


def _weighted_sums(probability: Tensor, y: Tensor, weight: Tensor, options: DiceOptions) -> Tensor:
    """The sums with a weight for each voxel, Σ w p g, Σ w p, Σ w g, by two calls of `dice_sums`."""
    weight = weight.to(probability.dtype)
    intersection, prediction, _ = dice_sums(probability * weight, y, options)
    ground = dice_sums(weight.expand_as(probability), y, options)[0]
    return torch.stack([intersection, prediction, ground])
