"""Trains a V-Net on a folder of volumes with masks, or on phantoms."""

from typing import Any

from vnet_fast import command_line
from vnet_fast.data.check import check_data
from vnet_fast.devices import keep_freed_memory, use_all_cores
from vnet_fast.distributed import is_lost_process
from vnet_fast.errors import InputError
from vnet_fast.run import tensorboard
from vnet_fast.run.configuration import ALL, Config
from vnet_fast.run.configure import configure
from vnet_fast.training.cross_validation import cross_validate
from vnet_fast.training.planned import planned
from vnet_fast.training.train_run import train_run


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    use_all_cores()
    keep_freed_memory()
    given, plan = planned(given)
    config = configure(given)
    if plan:
        print(f"plan: {plan}", flush=True)
    if config.tensorboard:
        tensorboard.check_installed()
    if config.check:
        return check_data(config)
    if config.fold == ALL:
        return cross_validate(config, train_run)
    try:
        return train_run(config)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise InputError("another process", "has ended", "See its message, and resume the run") from None


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.train"))
