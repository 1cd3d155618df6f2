"""Validation during training: how often, the Dice of each case, and which validation is the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vnet_fast.data.preparation import PreparedCase
from vnet_fast.devices import mixed_precision
from vnet_fast.run.log import mean_dice

# of a run
VALIDATIONS = 10
# of a run's time at most, if that leaves one validation at the end
TIME_SHARE = 0.02
# a forward pass takes about this share of a step's time for the same volume
FORWARD_SHARE = 1 / 3


@dataclass
class Best:
    """The best validation so far.

    Args:
        iteration: of it; 0 before the first one.
        dice: the mean over cases and classes.
        per_case: Dice of each class, by the name of the case.
    """

    iteration: int = 0
    dice: float = -1.0
    per_case: dict[str, list[float]] | None = field(default=None)

    def improved_by(self, iteration: int, per_case: dict[str, list[float]]) -> bool:
        """Takes a validation if its mean Dice is higher; returns whether it is."""
        dice = mean_dice(per_case)
        if dice <= self.dice:
            return False
        self.iteration, self.dice, self.per_case = iteration, dice, per_case
        return True


def interval(iterations: int, batch_size: int, cases: int) -> int:
    """Iterations from one validation to the next: ten validations a run, fewer if they would take more than 2 % of
    its time.

    Args:
        iterations: of the run.
        batch_size: volumes per iteration.
        cases: volumes per validation.
    """
    affordable = math.floor(TIME_SHARE * iterations * batch_size / (FORWARD_SHARE * cases))
    return math.ceil(iterations / min(VALIDATIONS, max(1, affordable)))


@torch.inference_mode()
def validate(
    model: nn.Module, cases: Sequence[PreparedCase], num_classes: int, autocast: torch.dtype | None = None
) -> dict[str, list[float]]:
    """Dice of each case and foreground class.

    Args:
        model: the network; it is left in training mode.
        cases: to validate on.
        num_classes: background included; 2 makes all labels above 0 one class.
        autocast: the dtype of mixed precision, or None.

    Returns:
        num_classes - 1 numbers by the name of each case; 1 where neither mask has the class.
    """
    if not cases:
        # of several processes, one may have no case
        return {}
    device = next(model.parameters()).device
    model.eval()
    counts = []
    for case in cases:
        image = torch.from_numpy(case.image)[None, None].to(device)
        reference = torch.from_numpy(case.mask).to(device)
        with mixed_precision(device, autocast):
            logits = model(image)
        prediction = logits[0].argmax(0)
        if num_classes == 2:
            reference = reference.clamp(max=1)
        counts.append(torch.stack([_counts(prediction == k, reference == k) for k in range(1, num_classes)]))
    model.train()
    # the device is waited for once
    dice = [
        [2 * overlap / total if total else 1.0 for overlap, total in of_case]
        for of_case in torch.stack(counts).tolist()
    ]
    return {case.name: of_case for case, of_case in zip(cases, dice, strict=True)}


def _counts(prediction: Tensor, reference: Tensor) -> Tensor:
    """The number of voxels in both masks, and the sum of the two masks' numbers."""
    return torch.stack([(prediction & reference).sum(), prediction.sum() + reference.sum()])
