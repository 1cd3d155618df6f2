"""From a dataclass to a command line, and from an exception to one line and an exit code."""

import argparse
import dataclasses
import os
import signal
import sys
import traceback

from vnet_fast.errors import InputError, InputErrors

EXIT_BAD_INPUT = 2


def option(default, help, **arguments):
    """A field of a Config with the words and the form of its option.

    Args:
        default: its default value.
        help: one line, with the unit.
        **arguments: further arguments of `argparse`'s `add_argument`.
    """
    return dataclasses.field(default=default, metadata={"help": help, **arguments})


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, as every other bad input."""

    def error(self, message):
        self.exit(EXIT_BAD_INPUT, f"error: {message}. See {self.prog} --help.\n")


class StoredParser(argparse.ArgumentParser):
    """Reports a wrong value as one of the file that it was stored in."""

    def error(self, message):
        raise InputError(self.prog, f"not what a run stores ({message})", "Restore the file, or start a new run")


def parse_stored(config_class, stored, path):
    """A Config from stored values, checked as those of the command line are.

    Args:
        config_class: a dataclass whose fields are made by `option`.
        stored: dict from name to value, as JSON keeps them; unknown names are passed over.
        path: the file that they are from.

    Raises:
        InputError: if a value is not allowed.
    """
    parser = StoredParser(prog=str(path), argument_default=argparse.SUPPRESS, allow_abbrev=False, add_help=False)
    words = []
    for field in dataclasses.fields(config_class):
        flag = _add_option(parser, field)
        value = stored.get(field.name)
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    given = vars(parser.parse_args(words))
    return config_class(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def _add_option(parser, field):
    arguments = dict(field.metadata)
    if field.default not in (None, False, "") and "action" not in arguments:
        shown = field.default if not isinstance(field.default, tuple) else " ".join(map(str, field.default))
        arguments["help"] += f" (default: {shown})"
    flag = "--" + field.name.replace("_", "-")
    parser.add_argument(flag, **arguments)
    return flag


def parser_of(config_class, module):
    """A parser with an option for each field of `config_class`; options not given are absent from
    what it returns.

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


def run(main, parser, arguments=None):
    """Parses, calls `main(given)` with the options given as a dict, and exits with its code.

    Bad input is one line on stderr and exit code 2; nothing else is caught, but for the reader of
    a pipe that has gone away.
    """
    given = vars(parser.parse_args(arguments))
    debug = given.pop("debug", False)
    try:
        code = main(given)
        sys.stdout.flush()
    except (InputError, InputErrors) as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # keeps the interpreter from complaining when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        # a full disk, a folder in the place of a file: what no part has words of its own for
        if debug:
            traceback.print_exc()
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}. Check it and try again", file=sys.stderr
        )
        code = EXIT_BAD_INPUT
    sys.exit(code)


def path_text(text):
    """The type of an option that names a file or a folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path; got ''")
    return text


def positive_int(text):
    """The type of an option that counts."""
    return _number(text, int, lambda value: value > 0, "a whole number above 0")


def natural_int(text):
    """The type of an option that counts from 0."""
    return _number(text, int, lambda value: value >= 0, "a whole number, 0 or more")


def positive_float(text):
    """The type of an option that measures."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def natural_float(text):
    """The type of an option that measures, 0 allowed."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")


def share(text):
    """The type of an option that is a part of a whole, which it never is altogether."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


def _number(text, convert, allowed, words):
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"must be {words}; got {text!r}")
    return value
