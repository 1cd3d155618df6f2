"""From the options that are given to a run, or to the runs of a cross-validation."""

from typing import Any

from vnet_fast.data.folds import check_disjoint, read_split
from vnet_fast.distributed import is_lost_process
from vnet_fast.errors import InputError
from vnet_fast.progress import say
from vnet_fast.run import tensorboard
from vnet_fast.run.configuration import Config
from vnet_fast.run.configure import configure, with_checkpoint
from vnet_fast.run.fold_options import ALL
from vnet_fast.training.cross_validation import cross_validate
from vnet_fast.training.planned import planned
from vnet_fast.training.train_run import train_run


def settle(given: dict[str, Any]) -> Config:
    """The Config of the options that are given, with the grid that is planned from the data if that is asked for.

    Args:
        given: dict from option to value, without the options that are not given.

    Raises:
        InputError, InputErrors: if options contradict each other or the run to resume, or can't fit in memory.
    """
    given, plan = planned(with_checkpoint(_with_folds(given)))
    config = configure(given)
    if plan:
        say(f"plan: {plan}")
    if config.tensorboard:
        tensorboard.check_installed()
    return config


def _with_folds(given: dict[str, Any]) -> dict[str, Any]:
    """The options with the number of a split's folds. Those of a run to resume are compared when its data is there."""
    if given.get("split") is None or "resume" in given:
        return given
    count = len(read_split(given["split"]))
    if given.get("folds", count) != count:
        raise InputError("--folds", f"is {given['folds']}, and {given['split']} has {count}", "Leave it out")
    if given.get("fold") == ALL:
        check_disjoint(given["split"])
    return {**given, "folds": count}


def start(config: Config) -> int:
    """Trains a run, or one for each fold; returns the exit code.

    Raises:
        InputError, InputErrors: if data, folder, device or checkpoint can't be used.
    """
    if config.fold == ALL:
        return cross_validate(config, train_run)
    try:
        return train_run(config)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise InputError("another process", "has ended", "See its message, and resume the run") from None
