"""Validation during training: how often, the Dice of each case, and which validation is the best."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vnet_fast.averages import mean_dice
from vnet_fast.data.preparation import IGNORED, PreparedCase
from vnet_fast.devices import HOST, free_memory, is_out_of_memory, mixed_precision
from vnet_fast.evaluation.metrics import dice as dice_of_masks
from vnet_fast.evaluation.metrics import dice_per_class
from vnet_fast.prediction.components import largest_components
from vnet_fast.prediction.inference import OVERLAP, Shape, as_batch, predict_probabilities
from vnet_fast.prediction.passes import Passes
from vnet_fast.prediction.windows import cover
from vnet_fast.progress import note
from vnet_fast.regions import Region
from vnet_fast.run.configuration import Config

T = TypeVar("T")

# of a run
VALIDATIONS = 10
# checkpoints of a run, at least
SAVES = 10
# of a run's time at most, if that leaves one validation at the end
TIME_SHARE = 0.02
# a forward pass takes about this share of a step's time for the same volume
FORWARD_SHARE = 1 / 3


@dataclass
class Best:
    """The best validation so far.

    Args:
        iteration: of it; 0 before the first one.
        dice: the mean over the classes of each class's mean over the cases; NaN if no case has any class.
        per_case: Dice of each class, by the name of the case.
        since: validations after it, which were not better.
    """

    iteration: int = 0
    dice: float = -1.0
    per_case: dict[str, list[float]] | None = field(default=None)
    since: int = 0

    def improved_by(self, iteration: int, per_case: dict[str, list[float]]) -> bool:
        """Takes a validation if its mean Dice is higher; returns whether it is."""
        dice = mean_dice(per_case.values())
        is_better = dice > self.dice or (math.isnan(self.dice) and not math.isnan(dice))
        # the first is taken in any case, so that there is one
        if self.iteration and not is_better:
            self.since += 1
            return False
        self.iteration, self.dice, self.per_case, self.since = iteration, dice, per_case, 0
        return True

    def exhausts(self, patience: int | None) -> bool:
        """Whether so many validations were not better; None is endless patience."""
        return patience is not None and self.since >= patience


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


def intervals(config: Config, iterations: int, volumes: int, cases: int) -> tuple[int, int]:
    """Iterations from one validation to the next, and from one checkpoint to the next.

    Args:
        config: of the run, which may name them.
        iterations: of the run.
        volumes: per iteration, of all processes.
        cases: volumes per validation.
    """
    val_every = config.val_every or interval(iterations, volumes, cases)
    return val_every, config.save_every or min(val_every, math.ceil(iterations / SAVES))


def chosen(held_out: Sequence[T], count: int | None) -> list[T]:
    """Those of the held-out cases, or of their names, that are validated: so many, spread evenly, or all."""
    count = len(held_out) if count is None else min(count, len(held_out))
    return [held_out[place * len(held_out) // count] for place in range(count)]


@torch.inference_mode()
def validate(
    model: nn.Module,
    cases: Sequence[PreparedCase],
    num_classes: int,
    autocast: torch.dtype | None = None,
    progress: Callable[[Sequence[PreparedCase]], Iterable[PreparedCase]] = iter,
    window: Shape | None = None,
    regions: Sequence[Region] = (),
    ignores: bool = False,
    passes: Passes | None = None,
) -> dict[str, list[float]]:
    """Dice of each case and foreground class.

    It is what `python -m vnet_fast.evaluate` measures of `python -m vnet_fast.predict`'s masks, but on the network's
    grid: only the largest component of each class is kept, and voxels outside of the image count in neither mask.

    Args:
        model: the network; it is left in training mode.
        cases: to validate on.
        num_classes: background included; 2 makes all labels above 0 one class.
        autocast: the dtype of mixed precision, or None.
        progress: wraps the cases, for example in a progress bar.
        window: None, or the (d, h, w) voxels of the windows in which larger cases are predicted.
        regions: the classes, if they are regions of labels.
        ignores: whether masks have voxels that do not count.
        passes: run the network; afterwards they keep no memory. None: new ones.

    Returns:
        a number for each region, or num_classes - 1 numbers, by the name of each case; NaN where neither mask has the
        class.
    """
    if not cases:
        # of several processes, one may have no case
        return {}
    model.eval()
    masks = _predict(passes or Passes(), model, progress(cases), window, autocast, bool(regions))
    model.train()
    return {
        case.name: _dice_of(case, found, num_classes, regions, ignores)
        for case, found in zip(cases, masks, strict=True)
    }


def _dice_of(
    case: PreparedCase, predicted: NDArray[np.uint8], num_classes: int, regions: Sequence[Region], ignores: bool
) -> list[float]:
    """Dice of each class of a case, of its predicted labels, or of a mask for each region."""
    inside, reference = case.inside, reference_labels(case, num_classes, ignores)[case.inside]
    counted = case.mask[inside] != IGNORED if ignores else np.True_
    if not regions:
        return dice_per_class(largest_components(predicted[inside]) * counted, reference, num_classes)
    return [
        dice_of_masks((largest_components(found[inside]) > 0) & counted, region.of(reference))
        for region, found in zip(regions, predicted, strict=True)
    ]


def _predict(
    passes: Passes,
    model: nn.Module,
    cases: Iterable[PreparedCase],
    window: Shape | None,
    autocast: torch.dtype | None,
    regions: bool,
) -> Iterable[NDArray[np.uint8]]:
    """The labels of cases, or a mask for each region."""
    try:
        if window is None:
            return _predict_at_once(passes, model, cases, autocast, regions)
        return [_by_windows(passes, model, case.image, window, autocast, regions) for case in cases]
    finally:
        # the next validation captures again, and training has the memory until then
        passes.release()
        passes.explain(note)


def _predict_at_once(
    passes: Passes, model: nn.Module, cases: Iterable[PreparedCase], autocast: torch.dtype | None, regions: bool
) -> Iterable[NDArray[np.uint8]]:
    """The labels of cases of one shape, or a mask for each region; the device is waited for when all are computed."""
    device = next(model.parameters()).device

    def predict(image: Tensor) -> tuple[Tensor]:
        with mixed_precision(device, autocast):
            logits = model(image)
        return ((logits[0] > 0 if regions else logits[0].argmax(0)).to(torch.uint8),)

    def labels_of(case: PreparedCase) -> Tensor:
        try:
            return passes(predict, model, as_batch(case.image).to(device), (autocast, regions))[0]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # the labels of all cases fill the memory that a graph holds; without it, smaller windows may do
        passes.make_room()
        free_memory(device)
        return torch.from_numpy(_by_windows(passes, model, case.image, case.shape, autocast, regions))

    predicted = [labels_of(case) for case in cases]
    labels: NDArray[np.uint8] = torch.stack([labels.to(HOST) for labels in predicted]).numpy()
    return labels


def _by_windows(
    passes: Passes,
    model: nn.Module,
    image: NDArray[np.float32],
    window: Shape,
    autocast: torch.dtype | None,
    regions: bool,
) -> NDArray[np.uint8]:
    """The labels of a volume, or a mask for each region, by windows."""
    probabilities = predict_probabilities(model, image, autocast, window, overlapping=regions, passes=passes)
    return (probabilities > 0.5 if regions else probabilities.argmax(0)).astype(np.uint8)


def passes_of(cases: Sequence[PreparedCase], window: Shape | None) -> int:
    """How many windows a validation of cases takes, or one for each case."""
    if window is None:
        return len(cases)
    return sum(len(cover(case.shape, window, OVERLAP)) for case in cases)


def seconds_of_a_validation(
    model: nn.Module,
    cases: Sequence[PreparedCase],
    num_classes: int,
    autocast: torch.dtype | None = None,
    window: Shape | None = None,
    regions: Sequence[Region] = (),
    passes: Passes | None = None,
) -> float:
    """How long `validate` takes, found with one of the cases; arguments as there."""
    # the first time also sets up memory and libraries
    for case in list(cases[:1]) * 2:
        began = time.monotonic()
        validate(model, [case], num_classes, autocast, window=window, regions=regions, passes=passes)
        seconds = time.monotonic() - began
    return seconds * passes_of(cases, window) / passes_of(cases[:1], window) if cases else 0.0


def reference_labels(case: PreparedCase, num_classes: int, ignores: bool = False) -> NDArray[np.uint8]:
    """The labels of a case as a network with so many classes sees them: with two, all above 0 are one. What does not
    count, if any, is 0.
    """
    mask = np.where(case.mask == IGNORED, 0, case.mask) if ignores else case.mask
    return np.minimum(mask, 1) if num_classes == 2 else mask
