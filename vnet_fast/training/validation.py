"""Validation during training: how often, and the Dice of each case, counted on the device."""

import math
from dataclasses import dataclass

import torch

from vnet_fast.devices import mixed_precision

VALIDATIONS = 10
# of a run's time at most, where that leaves one at the end
TIME_SHARE = 0.02
# a forward pass takes about this share of a step's time for the same volume
FORWARD_SHARE = 1 / 3


@dataclass
class Best:
    """The best validation so far."""

    iteration: int = 0
    dice: float = -1.0
    per_case: dict = None


def interval(iterations, batch_size, cases):
    """Iterations from one validation to the next: ten a run, or as many as take 2 % of its time.

    Args:
        iterations: of the run.
        batch_size: volumes an iteration.
        cases: volumes a validation.
    """
    affordable = math.floor(TIME_SHARE * iterations * batch_size / (FORWARD_SHARE * cases))
    return math.ceil(iterations / min(VALIDATIONS, max(1, affordable)))


@torch.inference_mode()
def validate(model, cases, num_classes, autocast=None):
    """Dice of each case and foreground class.

    Args:
        model: the network, left in training mode.
        cases: list of `cache.PreparedCase`.
        num_classes: background included; 2 makes all labels above 0 one class.
        autocast: the dtype of mixed precision, or None.

    Returns:
        dict from name to a list of num_classes - 1 numbers; 1 where neither mask has the class.
    """
    if not cases:
        # of several processes, one may have none
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
    values = [[2 * both / total if total else 1.0 for both, total in case] for case in torch.stack(counts).tolist()]
    return {case.name: dice for case, dice in zip(cases, values, strict=True)}


def _counts(a, b):
    """Voxels in both masks, and the sum of each one's."""
    return torch.stack([(a & b).sum(), a.sum() + b.sum()])
