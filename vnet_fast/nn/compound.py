"""What the sums of the Dice loss and another loss share: one pass for both, and their checks."""

from torch import Tensor

from vnet_fast.nn.losses import DiceLoss
from vnet_fast.ops.dice import DiceOptions, dice_sums


def dice_and_sums(
    loss: DiceLoss,
    input: Tensor,
    target: Tensor,
    options: DiceOptions,
    entropy: str,
    gamma: float | None = None,
    smoothed: bool = False,
) -> tuple[Tensor, Tensor]:
    """The Dice loss, and the sums of all classes with those of an entropy.

    Args:
        loss: the Dice loss.
        input: (N, C, *spatial) logits.
        target: as for the loss.
        options: of the Dice loss.
        entropy, gamma, smoothed: as in `DiceOptions`.

    Returns:
        the loss, and (4 or 5, N, C) sums. With the loss's `other_act`, which sees the logits first, these take a second
        pass, and only the ground truth and the entropies among them are of use.
    """
    _, labels, first_class, squared, soft, ignored, *_ = options
    if loss.other_act is None:
        both = DiceOptions(options.activation, labels, 0, squared, soft, ignored, entropy, gamma, smoothed)
        sums = dice_sums(input, target, both)
        return loss.of_sums(loss.over_batch(sums[:3, :, first_class:]), input.ndim), sums
    dice = loss.of_sums(loss.over_batch(dice_sums(loss.other_act(input), target, options)), input.ndim)
    return dice, dice_sums(
        input, target, DiceOptions("softmax", labels, 0, False, False, ignored, entropy, gamma, smoothed)
    )


def check_axes(input: Tensor, target: Tensor) -> None:
    """Raises a ValueError, as MONAI does, if input and target have other numbers of axes or channels."""
    if input.ndim < 3:
        raise ValueError(f"input must have shape (N, C, *spatial); got {tuple(input.shape)}")
    if input.ndim != target.ndim:
        raise ValueError(f"target must have {input.ndim} axes, as input has; got {target.ndim}")
    if target.shape[1] not in (1, input.shape[1]):
        raise ValueError(f"target must have 1 channel or {input.shape[1]}, as input has; got {target.shape[1]}")


def check_factors(**factors: float) -> None:
    """Raises a ValueError if the weight of a loss is negative."""
    for name, factor in factors.items():
        if factor < 0:
            raise ValueError(f"{name} must not be negative; got {factor}")
