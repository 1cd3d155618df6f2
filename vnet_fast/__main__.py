"""Lists the commands, or runs one: `python -m vnet_fast`, or `vnet-fast` if the package is installed."""

import argparse
import importlib
import importlib.util
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
COMPLETION, SHELLS = "--completion", ("bash", "zsh")


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
            "`vnet-fast --completion bash` prints what completes commands and options in bash; zsh has it too.",
        ]
    )


def _print_overview(name: str, given: dict[str, Any]) -> int:
    if name not in ("-h", "--help"):
        raise InputError(name, "not a command", f"Choose one of {', '.join(COMMANDS)}")
    print(overview())
    return 0


def completion(shell: str) -> str:
    """What a shell needs to complete the commands, their options and values, made by shtab.

    Args:
        shell: bash or zsh.

    Raises:
        InputError: if it is another shell, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise InputError(COMPLETION, f"must be {' or '.join(SHELLS)}; got {shell[:60]!r}", "Name one of them")
    if importlib.util.find_spec("shtab") is None:
        raise InputError(COMPLETION, "shtab is not installed", "pip install 'vnet_fast[completion]'")
    import shtab

    parser = argparse.ArgumentParser(prog="vnet-fast", formatter_class=command_line.Formatter)
    commands = parser.add_subparsers()
    for name, description in COMMANDS.items():
        module = importlib.import_module(f"vnet_fast.{name}")
        options = command_line.parser_of(module.Config, module.__name__)
        # bash completes files by itself; by shtab, it would get nothing else after an option with several values
        for action in options._actions if shell == "zsh" else ():
            if action.type is command_line.path_text:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab looks for it
        commands.add_parser(name, help=description, parents=[options], add_help=False)
    return str(shtab.complete(parser, shell)).replace("complete -o bashdefault", "complete -o bashdefault -o default")


def _print_completion(shell: str, given: dict[str, Any]) -> int:
    print(completion(shell))
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command that the first argument names, with the other arguments."""
    name, *others = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name == COMPLETION:
        run_completion = partial(_print_completion, " ".join(others))
        command_line.run(run_completion, argparse.ArgumentParser(add_help=False), [])
    if name not in COMMANDS:
        command_line.run(partial(_print_overview, name), argparse.ArgumentParser(add_help=False), [])
    module = importlib.import_module(f"vnet_fast.{name}")
    command_line.run(module.main, command_line.parser_of(module.Config, module.__name__), others)


if __name__ == "__main__":
    main()
