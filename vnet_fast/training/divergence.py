"""Stops a run whose loss or weights became NaN or infinite, before a checkpoint is overwritten."""

import math
from collections.abc import Sequence

from torch import nn

from vnet_fast.data.training_data import Data
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint
from vnet_fast.run.folder import LAST
from vnet_fast.training.draws import BatchSampler


def check_losses(losses: Sequence[float], first: int, sampler: BatchSampler, data: Data, run: str) -> None:
    """Raises an InputError if a loss is not finite. It names the cases of that iteration.

    Args:
        losses: of successive iterations.
        first: the iteration of the first loss, counted from 1.
        sampler: of the run's batches.
        data: of the run.
        run: folder of the run.
    """
    bad = next((first + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is not None:
        cases = sampler.whole_batch(bad - 1).cases
        names = ", ".join(dict.fromkeys(data.training[case].name for case in cases))
        raise _divergence(run, f"the loss became NaN or infinite at iteration {bad} ({names})")


def check_weights(model: nn.Module, iteration: int, run: str) -> None:
    """Raises an InputError if a weight is not finite."""
    if not checkpoint.all_finite(model):
        raise _divergence(run, f"weights became NaN or infinite by iteration {iteration}")


def _divergence(run: str, cause: str) -> InputError:
    remedy = "Start again with a lower --learning-rate, and check those cases if it happens again"
    return InputError(run, f"{cause}; {LAST} is from before", remedy)
