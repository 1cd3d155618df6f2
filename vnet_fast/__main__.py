"""Lists the commands, or runs one: `python -m vnet_fast`, or `vnet-fast` if the package is installed."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

from vnet_fast import __version__, command_line
from vnet_fast.errors import InputError

COMMANDS = {
    "train": "train a V-Net on volumes with masks, or on phantoms",
    "predict": "segment volumes with a trained V-Net",
    "evaluate": "compare predicted masks with reference masks",
    "report": "make one HTML page about training runs",
    "export": "write a trained network as a file or folder that runs without vnet_fast",
    "doctor": "examine this machine, and print what a bug report needs",
}


def overview() -> str:
    """The list of commands, a line for each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {description}" for name, description in COMMANDS.items()]
    return "\n".join(
        [
            f"vnet_fast {__version__}: V-Net for volumetric segmentation. The commands are:",
            "",
            *lines,
            "",
            "Run `python -m vnet_fast.COMMAND --help`, or `vnet-fast COMMAND --help`, for the options of a command.",
        ]
    )


def _print_overview(name: str, given: dict[str, Any]) -> int:
    if name not in ("-h", "--help"):
        raise InputError(name, "not a command", f"Choose one of {', '.join(COMMANDS)}")
    print(overview())
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the first argument names, with the other arguments."""
    name, *others = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name not in COMMANDS:
        command_line.run(partial(_print_overview, name), argparse.ArgumentParser(add_help=False), [])
    module = importlib.import_module(f"vnet_fast.{name}")
    command_line.run(module.main, command_line.parser_of(module.Config, module.__name__), others)


if __name__ == "__main__":
    main()
