"""What is said when training fails for want of memory or of a worker, and which batch would fit, found by trying."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from vnet_fast.devices import free_memory, is_out_of_memory, mixed_precision
from vnet_fast.errors import InputError
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.windows import halve_longest_axis
from vnet_fast.run.configuration import Config
from vnet_fast.training.step import Step
from vnet_fast.training.workers import GUARD, is_worker_death

Loss = Callable[[Tensor, Tensor], Tensor]


def make_step(step: Step, inputs: Sequence[Tensor], config: Config, search: bool) -> Tensor:
    """The loss of a step.

    Args:
        step: is called with the inputs.
        inputs: of an iteration.
        config: of the run.
        search: as in `out_of_memory_error`.

    Raises:
        InputError: if the step does not fit in memory.
    """
    try:
        return step(*inputs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # after the except clause, whose traceback keeps the activations
    step.release()
    raise out_of_memory_error(config, cast(VNet, step.network), step.loss, step.autocast, search)


def out_of_memory_error(
    config: Config, model: VNet, loss: Loss, autocast: torch.dtype | None, search: bool
) -> InputError:
    """The error of a batch that does not fit in memory, with options that would fit.

    Args:
        config: of the run.
        model: the network; its gradients are no longer needed.
        loss: called with (logits, target).
        autocast: the dtype of mixed precision, or None.
        search: whether smaller batches are tried, which one of several processes can't do alone.
    """
    device = next(model.parameters()).device
    free_memory(device)
    cause = f"{config.batch_size} volumes of {' x '.join(map(str, config.volume))} do not fit in memory"
    if not search:
        return InputError(device, cause, "Give a smaller --batch-size or --volume")
    fitting = largest_fitting_batch(model, loss, autocast, config.batch_size, config.shape)
    if fitting is None:
        return InputError(device, cause, f"Give {'another --init' if config.init else 'a smaller --base-channels'}")
    batch_size, shape = fitting
    options = f"--batch-size {batch_size}"
    if shape != config.shape:
        options += f" --volume {' '.join(map(str, reversed(shape)))}"
    # a run that starts from another one has its channels
    narrower = "" if config.init else f", or --base-channels below {config.base_channels}"
    return InputError(device, cause, f"Give {options}, which fits{narrower}")


def largest_fitting_batch(
    model: VNet, loss: Loss, autocast: torch.dtype | None, batch_size: int, shape: tuple[int, int, int]
) -> tuple[int, tuple[int, int, int]] | None:
    """A smaller batch that fits in memory; if a single volume does not fit, a smaller volume.

    Args:
        model: the network; its gradients are no longer needed.
        loss: called with (logits, target).
        autocast: the dtype of mixed precision, or None.
        batch_size: of the batch that did not fit.
        shape: of its volumes, voxels, (z, y, x).

    Returns:
        (batch size, shape), or None if not even the smallest volume fits.
    """
    for smaller in range(batch_size - 1, 0, -1):
        if _fits(model, loss, autocast, smaller, shape):
            return smaller, shape
    multiple = max(model.size_multiples)
    while (halved := halve_longest_axis(shape, multiple, multiple)) is not None:
        shape = halved
        if _fits(model, loss, autocast, 1, shape):
            return 1, shape
    return None


def _fits(model: VNet, loss: Loss, autocast: torch.dtype | None, batch_size: int, shape: tuple[int, int, int]) -> bool:
    device = next(model.parameters()).device
    try:
        image = torch.zeros(batch_size, model.in_channels, *shape, device=device, dtype=autocast or torch.float32)
        with mixed_precision(device, autocast):
            logits = model(image)
        loss(logits, torch.zeros(batch_size, 1, *shape, device=device, dtype=torch.uint8)).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        free_memory(device)
    return True


def explain_failure(error: Exception, device: torch.device) -> InputError | None:
    """What the user can do about a dead worker or exhausted memory; None for any other error."""
    if is_worker_death(error):
        # a worker returns its errors, so one that is not killed could not run the program's script again
        remedy = "Give fewer of them" if "killed" in str(error) else f"In a script, {GUARD}; or give fewer of them"
        return InputError("--workers", f"a worker process has ended: {error}", remedy)
    if is_out_of_memory(error):
        cause = "its memory does not suffice beside the training step"
        return InputError(device, cause, "Give a smaller --batch-size, --volume or --base-channels")
    return None
