"""Checks the state of optimiser and scaler that a checkpoint stores, before a step takes it over."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet_fast.errors import InputError
from vnet_fast.run.fields import Field, is_number, is_whole, wrong_field
from vnet_fast.stored import shown
from vnet_fast.training.step import Step

ANOTHER_RUN = "Start a new run"
# what an optimiser keeps for each weight: tensors of its shape, and a number of updates
MOMENTUM, UPDATES, SQUARES = "momentum_buffer", "step", "exp_avg_sq"
KEPT = {torch.optim.SGD: {MOMENTUM}, torch.optim.AdamW: {UPDATES, "exp_avg", SQUARES}}
SCALER = {
    "scale": Field("a number above 0", lambda v: is_number(v) and v > 0),
    "growth_factor": Field("a number above 1", lambda v: is_number(v) and v > 1),
    "backoff_factor": Field("a number from 0 to 1", lambda v: is_number(v, 0, 1)),
    "growth_interval": Field("a whole number above 0", lambda v: is_whole(v, 1)),
    "_growth_tracker": Field("a whole number, 0 or more", is_whole),
}


def check_step_state(content: Mapping[str, Any], step: Step, path: str | Path) -> None:
    """Raises an InputError unless the state in a checkpoint fits a step.

    Args:
        content: of the checkpoint, with `optimizer`, `scaler` and, of a run with one, `average`, all of them dicts.
        step: that will take it over.
        path: of the checkpoint, for messages.
    """
    scaler = content["scaler"]
    wrong = wrong_field(scaler, SCALER, "its scaler's")
    # the state is empty after a run in another precision
    if scaler and not SCALER.keys() <= scaler.keys():
        wrong = f"its scaler lacks {min(SCALER.keys() - scaler.keys())}"
    wrong = wrong or _wrong_groups(content["optimizer"], step.optimizer)
    wrong = wrong or _wrong_state(content["optimizer"]["state"], step.optimizer)
    # a scaler may have skipped every update so far
    wrong = wrong or (None if scaler else _lost_state(content, step.optimizer))
    wrong = wrong or _wrong_average(content.get("average"), step)
    if wrong:
        raise InputError(path, f"can't be resumed: {wrong}", ANOTHER_RUN)


def _wrong_groups(stored: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """What is wrong with the groups of a stored state."""
    groups, state = stored.get("param_groups"), stored.get("state")
    if not isinstance(groups, list) or not isinstance(state, dict):
        return "its optimizer has no groups, or no state"
    expected = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    found = [group.get("params") if isinstance(group, dict) else None for group in groups]
    are_numbers = all(isinstance(numbers, list) and all(map(is_whole, numbers)) for numbers in found)
    return None if are_numbers and found == expected else "the optimiser's state belongs to other parameters"


def _wrong_state(state: Mapping[Any, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """What is wrong with the tensors of a stored state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    expected = next((names for kind, names in KEPT.items() if isinstance(optimizer, kind)), set())
    for index, entries in state.items():
        if not is_whole(index, 0, len(weights) - 1) or not isinstance(entries, dict):
            return f"its optimizer has a state of {shown(index)}, which is no weight"
        if entries and entries.keys() != expected:
            return f"its optimizer's state of weight {index} is not of this optimiser"
        for name, value in entries.items():
            wrong = _wrong_count(value) if name == UPDATES else _wrong_buffer(value, weights[index])
            if not wrong and name == SQUARES and bool((value < 0).any()):
                wrong = "is negative"
            # PyTorch's SGD notes None where it has no momentum
            if wrong and not (name == MOMENTUM and value is None):
                return f"its optimizer's {name} of weight {index} {wrong}"
    return None


def _lost_state(content: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """Of which weight the state is missing, although the run has updated it."""
    group = optimizer.param_groups[0]
    keeps_state = isinstance(optimizer, torch.optim.AdamW) or group.get("momentum", 0) > 0
    if not (keeps_state and content.get("iteration")):
        return None
    state, count = content["optimizer"]["state"], sum(len(group["params"]) for group in optimizer.param_groups)
    lost = [index for index in range(count) if not state.get(index)]
    return f"its optimizer has no state of weight {lost[0]}" if lost else None


def _wrong_average(stored: Mapping[str, Any] | None, step: Step) -> str | None:
    """What is wrong with the stored weights beside their average."""
    if stored is None or step.average is None:
        return "it has no average of the weights" if step.average else None
    raw, weights = stored.get("raw"), step.average.weights
    if not isinstance(raw, dict) or raw.keys() != weights.keys() or not is_whole(stored.get("updates")):
        return "its average lacks the number of updates, or weights as they are trained"
    for name, weight in weights.items():
        wrong = _wrong_buffer(raw[name], weight)
        if wrong:
            return f"its average's {name} {wrong}"
    return None


def _wrong_buffer(value: object, weight: Tensor) -> str | None:
    """What is wrong with a stored tensor of the shape of a weight."""
    if not isinstance(value, Tensor) or value.dtype != weight.dtype:
        return f"must be a tensor of {weight.dtype}; got {shown(value)}"
    if value.shape != weight.shape:
        return f"has shape {list(value.shape)}, and the weight {list(weight.shape)}"
    return None if bool(torch.isfinite(value).all()) else "is NaN or infinite"


def _wrong_count(value: object) -> str | None:
    """What is wrong with a stored number of updates."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return None if is_number(number) else f"must be a number, 0 or more; got {shown(number)}"
