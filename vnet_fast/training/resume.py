"""Resumes a training run from its last checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vnet_fast.data.channels import are_alike, describe, of_checkpoint
from vnet_fast.data.training_data import Data
from vnet_fast.devices import HOST
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.nn.vnet import VNet
from vnet_fast.progress import say
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config, check_memory
from vnet_fast.run.fields import is_whole
from vnet_fast.run.folder import PREVIOUS, RunFolder, finished_at, is_measured
from vnet_fast.training.step import Step
from vnet_fast.training.stored_state import ANOTHER_RUN, check_step_state
from vnet_fast.training.validation import Best, chosen

# iterations per second that no machine trains
FASTEST = 1e4
# of a checkpoint; the batch came later, and is the settings' where it is missing
NEEDED = ("iteration", "seconds", "best", "training", "validation", "optimizer", "scaler")


@dataclass(frozen=True)
class State:
    """Where a run goes on.

    Args:
        iteration: how many are done.
        seconds: of training so far.
        best: the best validation so far.
        batch_size: volumes per iteration of each process.
    """

    iteration: int
    seconds: float
    best: Best
    batch_size: int


def restore(
    folder: RunFolder | None, config: Config, processes: Processes, model: VNet, step: Step, data: Data
) -> State:
    """Loads the last checkpoint of a run into its network and its step.

    Args:
        folder: of the run, None except in the first process.
        config: of the run.
        processes: that train together.
        model, step: are filled.
        data: of the run, which must have the same cases as before.

    Raises:
        InputError: if there is no usable checkpoint, its cases differ, or the run is finished.
    """
    # loaded on the host, because the device may have no room for a second copy
    content, path = RunFolder.load_last(config.output, HOST)
    processes.wait()
    if folder and path.name == PREVIOUS:
        folder.set_last_aside()
    _check_complete(content, path)
    data.check_unchanged({part: content[part] for part in ("training", "validation")}, path.parent)
    _check_data(content, path, data)
    checkpoint.fill_model(model, content, path)
    check_step_state(content, step, path)
    try:
        step.load_state_dict(content)
        best = Best(**content["best"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(path, f"can't be resumed ({error})", ANOTHER_RUN) from None
    total = content.get("batch", config.batch_size * processes.count)
    state = State(content["iteration"], content["seconds"], best, _divide_batch(total, processes.count))
    check_memory(replace(config, batch_size=state.batch_size))
    is_complete = finished_at(path.parent) == state.iteration and is_measured(path.parent)
    is_finished = state.best.iteration == 0 or is_complete
    if state.iteration > config.iterations or (state.iteration == config.iterations and is_finished):
        cause = f"is at iteration {state.iteration} of {config.iterations}"
        raise InputError(path.parent, cause, "Give more --iterations")
    if state.best.exhausts(config.patience) and is_finished:
        cause = f"has ended: no higher Dice in {state.best.since} validations"
        raise InputError(path.parent, cause, "Give more --patience")
    say(f"resuming at iteration {state.iteration}")
    return state


def _check_complete(content: dict[str, Any], path: Path) -> None:
    """Raises an InputError unless a checkpoint has all that a run needs to go on."""
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise InputError(path, f"can't be resumed: it has no {missing[0]}", ANOTHER_RUN)
    best = content["best"]
    if not {"iteration", "dice", "per_case"} <= best.keys():
        raise InputError(path, "can't be resumed: its best lacks iteration, dice or per_case", ANOTHER_RUN)
    planned = content.get("config", {}).get("iterations")
    if is_whole(planned) and content["iteration"] > planned:
        cause = f"can't be resumed: it is at iteration {content['iteration']} of {planned}"
        raise InputError(path, cause, ANOTHER_RUN)
    if content["iteration"] > FASTEST * content["seconds"]:
        cause = f"can't be resumed: {content['iteration']} iterations in {content['seconds']:.3g} s are impossible"
        raise InputError(path, cause, ANOTHER_RUN)
    validated = best["iteration"] > 0
    if best["iteration"] > content["iteration"] or validated != (best["per_case"] is not None):
        raise InputError(path, "can't be resumed: its best is no validation of the run", ANOTHER_RUN)
    count = content.get("config", {}).get("val_cases")
    cases = chosen(content["validation"], count if is_whole(count, 1) else None)
    if validated and best["per_case"].keys() != set(cases):
        raise InputError(path, "can't be resumed: its best is a validation of other cases", ANOTHER_RUN)


def _check_data(content: dict[str, Any], path: Path, data: Data) -> None:
    """Raises an InputError unless channels and classes are those that a run was started with. Older runs say less."""
    stored = of_checkpoint(content)
    if any(ours.is_ct and theirs.scaling is None for ours, theirs in zip(data.channels, stored, strict=False)):
        cause = "was started when CT was normalised volume by volume, and dataset.json names CT"
        raise InputError(path.parent, cause, "Start a new run, or name the channel otherwise there")
    if "channels" in content and not are_alike(data.channels, stored):
        cause = f"its channels have changed from {describe(stored)} to {describe(data.channels)}"
        raise InputError(path.parent, cause, "Restore the volumes and dataset.json, or start a new run")
    ours = data.description
    for name, title in (("regions", "regions"), ("ignored", "label to ignore")):
        if name in content and content[name] != ours[name]:
            cause = f"its {title} have changed" if name == "regions" else f"its {title} has changed"
            raise InputError(path.parent, cause, "Restore dataset.json, or start a new run")


def _divide_batch(total: int, processes: int) -> int:
    """The batch of each process that keeps the number of volumes per iteration, however many processes there are."""
    batch_size, rest = divmod(total, processes)
    if rest:
        cause = f"{processes} processes can't share the run's batches of {total}"
        raise InputError("--nproc-per-node", cause, "Start a number of processes that divides it")
    return batch_size
