"""What DICOM Segmentations say about the segments, which the user may give in a TOML file.

The file has a table for each class that needs one, with its name or its number:

    [prostate]
    category = { scheme = "SCT", value = "123037004", meaning = "Anatomical Structure" }
    type = { scheme = "SCT", value = "41216001", meaning = "Prostate" }
    colour = [230, 160, 0]
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vnet_fast.errors import InputError
from vnet_fast.io.dicom_seg_writing import Code, Segment
from vnet_fast.io.label_names import colour_of
from vnet_fast.stored import open_regular, reason, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]  # installed with Python 3.10 only

# what 3D Slicer calls a segment that nothing is known of
TISSUE = Code("85756007", "SCT", "Tissue")
# the characters that DICOM has room for
MAX_NAME, MAX_MEANING, MAX_SCHEME, MAX_VALUE, MAX_TEXT, MAX_UID = 64, 64, 16, 64, 1024, 64
UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
KEYS = ("name", "category", "type", "colour", "tracking_id", "tracking_uid", "description")
CODE_KEYS = ("scheme", "value", "meaning")
HINT = "Write a table for each class, such as [1], with category, type, colour, tracking_id or description"
CODE_HINT = 'Write { scheme = "SCT", value = "41216001", meaning = "Prostate" }, for example'


def read_segments(path: str | Path | None, titles: Mapping[int, str]) -> tuple[Segment, ...]:
    """The segments of a network's classes.

    Args:
        path: of a TOML file; None for the defaults, the category and the type `Tissue`.
        titles: what the classes are called by their number, 1, 2, …

    Returns:
        a Segment for each class, in order.

    Raises:
        InputError: if the file can't be read, names no class of the network, or has a value that DICOM has no room for.
    """
    content = {} if path is None else _read_toml(path)
    tables: dict[int, Mapping[str, Any]] = {}
    for key, table in content.items():
        number = _class_of(path, key, titles)
        if number in tables:
            raise InputError(path, f"describes {titles[number]} twice", HINT)
        if not isinstance(table, dict):
            raise InputError(path, f"{key} must be a table; got {shown(table)}", HINT)
        wrong = next((entry for entry in table if entry not in KEYS), None)
        if wrong is not None:
            raise InputError(path, f"{key} has {shown(wrong)}, which is not known", f"Choose from {', '.join(KEYS)}")
        tables[number] = table
    return tuple(_segment(path, number, title, tables.get(number, {})) for number, title in titles.items())


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        with open_regular(path, "r", encoding="utf-8-sig") as file:
            content: dict[str, Any] = tomllib.loads(file.read())
            return content
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", "Check it and its permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not TOML ({reason(error)})", HINT) from None


def _class_of(path: object, key: str, titles: Mapping[int, str]) -> int:
    """The number of the class that a table is of."""
    for number, title in titles.items():
        if key in (title, str(number)):
            return number
    listed = ", ".join(f"{title} ({number})" for number, title in list(titles.items())[:5])
    raise InputError(path, f"{shown(key)} is no class of the network", f"Choose from {listed}")


def _segment(path: object, number: int, title: str, table: Mapping[str, Any]) -> Segment:
    red, green, blue = (round(255 * value) for value in colour_of(number))
    tracking_id = _text(path, table, "tracking_id", MAX_TEXT)
    tracking_uid = _text(path, table, "tracking_uid", MAX_UID)
    if tracking_uid and not (tracking_id and UID.fullmatch(tracking_uid)):
        raise InputError(path, f"tracking_uid of {title} must be numbers with dots, beside a tracking_id",
                         "Correct it, or leave it out for a new one")  # fmt: skip
    return Segment(
        name=_text(path, table, "name", MAX_NAME) or _one_line(title)[:MAX_NAME] or f"class {number}",
        category=_code(path, title, table, "category"),
        kind=_code(path, title, table, "type"),
        colour=_colour(path, title, table["colour"]) if "colour" in table else (red, green, blue),
        tracking_id=tracking_id,
        tracking_uid=tracking_uid,
        description=_text(path, table, "description", MAX_TEXT),
    )


def _one_line(name: str) -> str:
    """A name as DICOM can hold it: it separates values by backslashes."""
    return " ".join("".join(c if c.isprintable() else " " for c in name.replace("\\", "/")).split())


def _text(path: object, table: Mapping[str, Any], key: str, longest: int) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or len(value) > longest or value != _one_line(value):
        cause = f"{key} must be a text of up to {longest} characters on one line; got {shown(value)}"
        raise InputError(path, cause, "Correct it")
    return value


def _code(path: object, title: str, table: Mapping[str, Any], key: str) -> Code:
    if key not in table:
        return TISSUE
    code = table[key]
    if not isinstance(code, dict) or sorted(code) != sorted(CODE_KEYS) or not all(code.values()):
        raise InputError(path, f"{key} of {title} must have {', '.join(CODE_KEYS)}", CODE_HINT)
    texts = (_text(path, code, name, most) for name, most in zip(CODE_KEYS, (MAX_SCHEME, MAX_VALUE, MAX_MEANING),
                                                                 strict=True))  # fmt: skip
    scheme, value, meaning = texts
    return Code(value, scheme, meaning)


def _colour(path: object, title: str, colour: object) -> tuple[int, int, int]:
    if not (isinstance(colour, list) and len(colour) == 3):
        raise InputError(path, f"colour of {title} must be red, green and blue; got {shown(colour)}", "Correct it")
    for value in colour:
        if type(value) is not int or not 0 <= value <= 255:
            raise InputError(
                path, f"colour of {title} must be numbers from 0 to 255; got {shown(colour)}", "Correct it"
            )
    red, green, blue = colour
    return red, green, blue
