"""From a dataclass to a command line, and from an exception to one line and an exit code."""

import argparse
import dataclasses
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.streams import tolerant_streams

EXIT_BAD_INPUT = 2
ConfigType = TypeVar("ConfigType")
Number = TypeVar("Number", int, float)


def option(default: Any, help: str, **arguments: Any) -> Any:
    """A field of a Config, with the help text and the type of its option.

    Args:
        default: its default value.
        help: one line, with the unit.
        **arguments: further arguments of `argparse`'s `add_argument`.
    """
    return dataclasses.field(default=default, metadata={"help": help, **arguments})


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, like any other bad input."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(EXIT_BAD_INPUT, f"error: {message}. See {self.prog} --help.\n")


class StoredParser(argparse.ArgumentParser):
    """Reports a wrong value as an error of the file that it was stored in."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError."""
        raise InputError(self.prog, f"not what a run stores ({message})", "Restore the file, or start a new run")


def parse_stored(config_class: type[ConfigType], stored: dict[str, Any], path: str | Path) -> ConfigType:
    """A Config from stored values, checked in the same way as options of the command line.

    Args:
        config_class: a dataclass whose fields are made by `option`.
        stored: dict from name to value, as JSON keeps them; unknown names are ignored.
        path: the file that they come from.

    Raises:
        InputError: if a value is not allowed.
    """
    parser = StoredParser(prog=str(path), argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    arguments = []
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]  # every Config is a dataclass
        flag = _add_option(parser, field)
        value = stored.get(field.name)
        if value is True:
            arguments.append(flag)
        elif value not in (None, False):
            arguments += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    given = vars(parser.parse_args(arguments))
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _add_option(parser: argparse.ArgumentParser, field: "dataclasses.Field[Any]") -> str:
    arguments = dict(field.metadata)
    if field.default not in (None, False, "") and "action" not in arguments:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        arguments["help"] += f" (default: {default})"
    flag = "--" + field.name.replace("_", "-")
    parser.add_argument(flag, **arguments)
    return flag


def parser_of(config_class: type[Any], module: str) -> Parser:
    """A parser with an option for each field of `config_class`. What it returns lacks the options that are not
    given.

    Args:
        config_class: a dataclass whose fields are made by `option`.
        module: the name after `python -m`; the class's docstring is the description.
    """
    parser = Parser(
        prog=f"python -m {module}",
        description=config_class.__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(config_class):
        _add_option(parser, field)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(
    main: Callable[[dict[str, Any]], int], parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> NoReturn:
    """Parses the arguments, calls `main` with a dict of the given options, and exits with the code it returns.

    Bad input becomes one line on stderr and exit code 2. Unexpected exceptions are not caught. A closed stdout or
    stderr, or one that lacks a character, is no error.
    """
    with tolerant_streams():
        given = vars(parser.parse_args(arguments))
        code = _run(main, given, debug=given.pop("debug", False))
    sys.exit(code)


def _run(main: Callable[[dict[str, Any]], int], given: dict[str, Any], debug: bool) -> int:
    """Calls `main`; returns its exit code, or that of its exception, which is printed."""
    try:
        code = main(given)
        sys.stdout.flush()
        return code
    except (InputError, InputErrors) as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        # a full disk, or a folder where a file should be: errors that no other module explains
        if debug:
            traceback.print_exc()
        cause = error.strerror or error
        print(f"error: {error.filename or 'a file'}: {cause}. Check it and try again", file=sys.stderr)
        return EXIT_BAD_INPUT


def path_text(text: str) -> str:
    """The type of an option that names a file or a folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path; got ''")
    return text


def positive_int(text: str) -> int:
    """The type of a whole number above 0."""
    return _number(text, int, lambda value: value > 0, "a whole number above 0")


def natural_int(text: str) -> int:
    """The type of a whole number, 0 or more."""
    return _number(text, int, lambda value: value >= 0, "a whole number, 0 or more")


def positive_float(text: str) -> float:
    """The type of a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def natural_float(text: str) -> float:
    """The type of a finite number, 0 or more."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")


def share(text: str) -> float:
    """The type of a fraction, from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text: str, convert: type[Number], is_allowed: Callable[[Number], bool], description: str) -> Number:
    message = f"must be {description}; got {text!r}"
    try:
        value = convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(message) from None
    if not is_allowed(value):
        raise argparse.ArgumentTypeError(message)
    return value
