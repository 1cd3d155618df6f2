"""Folders that a trained network is exported to: written whole or not at all, and never over anything."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import jinja2

from vnet_fast.errors import InputError
from vnet_fast.files import make_folder

PACKAGE = "vnet_fast.deployment"
TEMPLATES = "templates"
ANOTHER_OUTPUT = "Choose another --output"
NOT_EMPTY = "a folder that is not empty"


def check_folder(output: str) -> Path:
    """The path of the folder to write, after all checks that are possible before anything is read.

    Raises:
        InputError: if there is something already.
    """
    path = Path(output)
    if path.suffix.lower() in (".pt2", ".onnx", ".xml"):
        cause = "named like a file, and this --format is a folder"
        raise InputError(path, cause, "Name a folder, or leave --format out")
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(path, "is a file, and this --format is a folder", ANOTHER_OUTPUT)
    if path.is_dir() and next(path.iterdir(), None) is not None:
        raise InputError(path, NOT_EMPTY, ANOTHER_OUTPUT)
    return path


def name_of(path: Path) -> str:
    """The name of a folder, also of `.`, whose path has none."""
    return os.path.basename(os.path.abspath(path))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is there once it is complete; if the block raises, nothing is left behind.

    A folder that exists is filled, and not replaced, because it may be the current one, a link or a mount point.

    Args:
        path: of the folder; nothing, or an empty folder.

    Raises:
        InputError: if it can't be written.
    """
    # resolved, because `.` has no parent
    path = Path(os.path.abspath(path))
    exists = path.is_dir()
    parent = path if exists else make_folder(path.parent, ANOTHER_OUTPUT)
    unfinished = parent / f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        unfinished.mkdir()
        yield unfinished
        if exists:
            _fill(path, unfinished)
        else:
            unfinished.rename(path)
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", ANOTHER_OUTPUT) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(folder: Path, unfinished: Path) -> None:
    """Moves all that an unfinished folder holds into the folder that it is in, or nothing."""
    if any(entry != unfinished for entry in folder.iterdir()):
        raise InputError(folder, NOT_EMPTY, ANOTHER_OUTPUT)
    names = [entry.name for entry in unfinished.iterdir()]
    moved = []
    try:
        for name in names:
            moved.append((unfinished / name).rename(folder / name))
    except BaseException:
        for entry in moved:
            entry.rename(unfinished / entry.name)
        raise


def copy_programs(package: str, target: Path, name: str = "") -> None:
    """Copies the programs of a package to a folder, where they import each other by another name.

    Args:
        package: `standalone`, or another one in this room.
        target: the folder, which is made.
        name: the package that they are in there; empty if they are in none.
    """
    target.mkdir(parents=True, exist_ok=True)
    prefix = f"{PACKAGE}.{package}."
    for source in sorted(resources.files(f"{PACKAGE}.{package}").iterdir(), key=lambda entry: entry.name):
        if source.name.endswith(".py") and (name or source.name != "__init__.py"):
            text = source.read_text(encoding="utf-8").replace(prefix, f"{name}." if name else "")
            (target / source.name).write_text(text, encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE, TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown
    )


def write_page(template: str, target: Path, **facts: object) -> None:
    """Writes a page of text from a template of this room."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_environment().get_template(template).render(facts), encoding="utf-8")
