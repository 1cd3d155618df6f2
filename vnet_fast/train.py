"""Trains a V-Net on a folder of volumes with masks, or on phantoms."""

from typing import Any

from vnet_fast import command_line
from vnet_fast.data.check import check_data
from vnet_fast.devices import use_all_cores
from vnet_fast.distributed import Processes
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.progress import silent
from vnet_fast.run.configuration import Config
from vnet_fast.training.start import settle, start


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    use_all_cores()
    keep_freed_memory()
    with silent(not Processes().is_first):
        config = settle(given)
        return check_data(config) if config.check else start(config)


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.train"))
