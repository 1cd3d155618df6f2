"""From a dataclass to a command line, and from an exception to one line and an exit code."""

import argparse
import dataclasses
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.interrupts import end_at_interrupts, repeated_interrupts
from vnet_fast.streams import tolerant_streams

EXIT_BAD_INPUT = 2
# what a message repeats of a wrong value; no number in use has as many digits
LONGEST_TEXT = 60
# of a whole number that counts something, and of a rate, which float32 must hold
MAX_INT, MAX_FLOAT = 2**31 - 1, 1e30
# what stands for the value of an option that the program chooses
AUTO = "auto"
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


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows an option that takes some values by their names, such as `--volume X Y Z`."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+" and isinstance(action.metavar, tuple):
            return " ".join(action.metavar)
        return super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, like any other bad input."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(EXIT_BAD_INPUT, f"error: {message}. See {self.prog} --help.\n")


class StoredParser(argparse.ArgumentParser):
    """Reports a wrong value as an error of the file that it was stored in."""

    def error(self, message: str) -> NoReturn:
        """Raises an InputError."""
        shown = message if len(message) <= 4 * LONGEST_TEXT else f"{message[: 4 * LONGEST_TEXT]}…"
        raise InputError(self.prog, f"not what a run stores ({shown})", "Restore the file, or start a new run")


def parse_stored(config_class: type[ConfigType], stored: dict[str, Any], path: str | Path) -> ConfigType:
    """A Config from stored values, checked in the same way as options of the command line.

    Args:
        config_class: a dataclass whose fields are made by `option`.
        stored: dict from name to value, as JSON keeps them; unknown names are ignored.
        path: the file that they come from.

    Raises:
        InputError: if a value is not allowed, or of another type than a run stores.
    """
    parser = StoredParser(
        prog=str(path), argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False,
        formatter_class=Formatter,
    )  # fmt: skip
    fields = [field for field in dataclasses.fields(config_class) if field.name in stored]  # type: ignore[arg-type]  # every Config is a dataclass
    arguments: list[str] = []
    for field in fields:
        arguments += _stored_arguments(parser, field, add_option(parser, field), stored[field.name])
    given = vars(parser.parse_args(arguments))
    for field in fields:
        value = stored[field.name]
        # a text is no number, although the command line has only texts
        if value not in (None, False) and given[field.name] != value:
            parser.error(f"{field.name} has a value of another type")
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _stored_arguments(parser: StoredParser, field: "dataclasses.Field[Any]", flag: str, value: object) -> list[str]:
    """The command line's arguments for a stored value."""
    values = value if isinstance(value, list) else [value]
    if not all(entry is None or isinstance(entry, str | int | float) for entry in values):
        parser.error(f"{field.name} has a value of another type")
    if isinstance(value, bool) or "action" in field.metadata:
        if not isinstance(value, bool) or "action" not in field.metadata:
            parser.error(f"{field.name} has a value of another type")
        return [flag] if value else []
    if value is None:
        if field.default is not None:
            parser.error(f"{field.name} has no value")
        return []
    # after =, what begins with - is no option
    return [flag, *map(str, values)] if isinstance(value, list) else [f"{flag}={value}"]


def add_option(parser: argparse._ActionsContainer, field: "dataclasses.Field[Any]") -> str:
    """Adds the option of a field of a Config to a parser; returns its flag."""
    arguments = dict(field.metadata)
    if field.default not in (None, False, "") and "action" not in arguments:
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        arguments["help"] += f" (default: {default})"
    flag = "--" + field.name.replace("_", "-")
    parser.add_argument(flag, **arguments)
    return flag


def _by_class(config_class: type[Any]) -> list[tuple[type[Any], list["dataclasses.Field[Any]"]]]:
    """The fields of a Config by the class that defines them, its own first."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    owners = [owner for owner in config_class.__mro__ if dataclasses.is_dataclass(owner)]
    return [(owner, [fields[name] for name in inspect.get_annotations(owner)]) for owner in owners]


def parser_of(config_class: type[Any], module: str) -> Parser:
    """A parser with an option for each field of `config_class`. What it returns lacks the options that are not
    given.

    Args:
        config_class: a dataclass whose fields are made by `option`. Those that it inherits are shown as a group, under
            the name of their class.
        module: the name after `python -m`; the class's docstring is the description.
    """
    parser = Parser(
        prog=f"python -m {module}",
        description=config_class.__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=Formatter,
    )
    for owner, fields in _by_class(config_class):
        is_own = owner is config_class
        title, description = owner.__name__.lower(), inspect.cleandoc(owner.__doc__ or "")
        container = parser if is_own else parser.add_argument_group(title, description)
        for field in fields:
            add_option(container, field)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def run(
    main: Callable[[dict[str, Any]], int], parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> NoReturn:
    """Parses the arguments, calls `main` with a dict of the given options, and exits with the code it returns.

    Bad input becomes one line on stderr and exit code 2. Unexpected exceptions are not caught. A closed stdout or
    stderr, or one that lacks a character, is no error.
    """
    with tolerant_streams(), repeated_interrupts():
        code = _run(main, parser, arguments)
    end_at_interrupts()
    sys.exit(code)


def _run(
    main: Callable[[dict[str, Any]], int], parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> int:
    """Calls `main`; returns its exit code, or that of its exception, which is printed."""
    debug = False
    try:
        given = vars(parser.parse_args(arguments))
        debug = given.pop("debug", False)
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
    try:
        is_path = bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise argparse.ArgumentTypeError(f"must be a path; got {_shortened(text)}")
    return text


def positive_int(text: str) -> int:
    """The type of a whole number above 0."""
    return _number(text, int, lambda value: value > 0, "a whole number above 0", MAX_INT)


def natural_int(text: str) -> int:
    """The type of a whole number, 0 or more; who needs a limit checks it."""
    return _number(text, int, lambda value: value >= 0, "a whole number, 0 or more")


def positive_float(text: str) -> float:
    """The type of a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0", MAX_FLOAT)


def natural_float(text: str) -> float:
    """The type of a finite number, 0 or more."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number, 0 or more", MAX_FLOAT)


def or_auto(convert: Callable[[str], Number]) -> Callable[[str], Number | str]:
    """The type of a value of an option that may also be AUTO."""

    def convert_unless_auto(text: str) -> Number | str:
        return text if text == AUTO else convert(text)

    return convert_unless_auto


def share(text: str) -> float:
    """The type of a fraction, from 0 to below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(
    text: str,
    convert: type[Number],
    is_allowed: Callable[[Number], bool],
    description: str,
    largest: float | None = None,
) -> Number:
    message = f"must be {description}; got {_shortened(text)}"
    if len(text) > LONGEST_TEXT:
        raise argparse.ArgumentTypeError(message)
    try:
        value = convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(message) from None
    if not is_allowed(value):
        raise argparse.ArgumentTypeError(message)
    if largest is not None and value > largest:
        raise argparse.ArgumentTypeError(f"must be at most {largest}; got {_shortened(text)}")
    return value


def _shortened(text: str) -> str:
    """A text in quotes, of which a message repeats only the beginning if it is long."""
    return repr(text) if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]!r}…"
