"""Prints what a bug report needs, and says what does not work on this machine."""

from dataclasses import dataclass
from typing import Any

from vnet_fast import command_line
from vnet_fast.command_line import option
from vnet_fast.devices import find_device, use_all_cores
from vnet_fast.diagnostics.checks import examine
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.progress import working


@dataclass(frozen=True)
class Config:
    """Print versions, devices, which kernels and convolutions run where, and the speed of a copy and a product.

    The exit code is 1 if something is wrong.
    """

    device: str = option("auto", "device to examine", choices=("auto", "cpu", "cuda"))


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    device = find_device(config.device)
    with working("examining"):
        found = examine(device)
    print("\n".join(found.lines))
    print()
    for problem in found.problems:
        print(f"wrong: {problem}")
    if not found.problems:
        print(f"everything that was tried works on {device}")
    return 1 if found.problems else 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.doctor"))
