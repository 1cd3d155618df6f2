"""Options that are given as keyword arguments, checked as those of the command line."""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import torch

from vnet_fast.command_line import Formatter, add_option
from vnet_fast.errors import InputError

PathLike: TypeAlias = str | os.PathLike[str]


class _Parser(argparse.ArgumentParser):
    """Reports a wrong value as an InputError."""

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"argument (?P<flag>--\S+): (?P<cause>.*)", message, re.DOTALL)
        flag, cause = (found["flag"], found["cause"]) if found else (self.prog, message)
        raise InputError(flag, cause, "Change it")


def checked(config_class: type[Any], given: Mapping[str, object], name: str) -> dict[str, Any]:
    """The options that are given, without those that are None.

    Args:
        config_class: a dataclass whose fields are made by `vnet_fast.command_line.option`.
        given: the keyword arguments.
        name: of the function that they were given to.

    Returns:
        dict from option to value, as the command line would have it.

    Raises:
        TypeError: if there is no such option.
        InputError: if a value is none that the command line would take.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for option in given:
        if option not in fields:
            near = difflib.get_close_matches(option, fields, 1)
            hint = f". Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{name}() got an unexpected keyword argument {option!r}{hint}")
    return {option: _checked(fields[option], value) for option, value in given.items() if value is not None}


def _checked(field: "dataclasses.Field[Any]", value: Any) -> Any:
    parser = _Parser(prog="--" + field.name.replace("_", "-"), add_help=False, formatter_class=Formatter)
    flag = add_option(parser, field)
    if isinstance(value, torch.device):
        value = str(value)
    if value is True and "const" in field.metadata:
        # an option whose value can be left out
        return field.metadata["const"]
    if isinstance(value, bool) or "action" in field.metadata:
        if not isinstance(value, bool) or "action" not in field.metadata:
            wanted = "True or False" if "action" in field.metadata else "no truth value"
            parser.error(f"argument {flag}: must be {wanted}; got {value!r}")
        return value
    takes_several = field.metadata.get("nargs", "?") != "?"
    is_single = isinstance(value, str | os.PathLike) or not hasattr(value, "__iter__")
    entries = [os.fspath(entry) if isinstance(entry, os.PathLike) else entry for entry in _list(value, is_single)]
    # after =, what begins with - is no option
    arguments = [flag, *map(str, entries)] if takes_several else [f"{flag}={entries[0]}"]
    if not takes_several and not is_single:
        parser.error(f"argument {flag}: must be a single value; got {value!r}")
    converted = vars(parser.parse_args(arguments))[field.name]
    # a text is no number, although the command line has only texts
    if (converted if takes_several else [converted]) != entries:
        parser.error(f"argument {flag}: must not be of the type {type(value).__name__}; got {value!r}")
    return converted


def _list(value: Any, is_single: bool) -> list[Any]:
    return [value] if is_single else list(value) or [""]


def signature(config_class: type[Any], function: Any) -> inspect.Signature:
    """The signature of a method that takes the fields of a Config as its keywords `**options`, for help and editors."""
    own = inspect.signature(function)
    kept = [parameter for parameter in own.parameters.values() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
        for field in dataclasses.fields(config_class)
        if field.name not in own.parameters
    ]
    return own.replace(parameters=[*kept, *options])
