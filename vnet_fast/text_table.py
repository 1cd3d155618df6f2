"""Tables of plain text, and names in them and in pictures."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

Alignment = Literal["left", "right"]
# a cell that begins with one of these may be computed
FORMULA_SIGNS = ("=", "+", "-", "@")
# of a name in a picture
LONGEST_NAME = 28
_SIGNS = {"left": "<", "right": ">"}


def printable(text: str) -> str:
    """Escapes characters that would break a line or steer a terminal, such as a newline in a file's name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def csv_name(text: str) -> str:
    """A cell of a CSV file that a spreadsheet takes for text: a name such as `=cmd|…` is no formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA_SIGNS) else text


def short_names(names: Sequence[str]) -> list[str]:
    """Unique names for a picture: paths without the folders that all have, and long names without their middle."""
    paths = [PurePath(name).parts for name in names if len(PurePath(name).parts) > 1]
    if len(paths) > 1:
        most = min(map(len, paths)) - 1
        first = _in_common(paths, most)
        last = _in_common([path[::-1] for path in paths], most - first)
        remaining = iter("/".join(path[first : len(path) - last]) for path in paths)
        names = [next(remaining) if len(PurePath(name).parts) > 1 else name for name in names]
    half = (LONGEST_NAME - 1) // 2
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}" for name in names]
    return shown if len(set(shown)) == len(shown) else [f"{name} ({n})" for n, name in enumerate(shown, start=1)]


def _in_common(paths: Sequence[Sequence[str]], most: int) -> int:
    """The number of parts that all paths begin with, up to `most`."""
    return next((n for n in range(most) if len({path[n] for path in paths}) > 1), most)


def format_table(rows: Sequence[Sequence[str]], align: Alignment | Sequence[Alignment] = "left") -> list[str]:
    """Formats rows as lines of text, with columns as wide as their widest cell and two spaces apart.

    Args:
        rows: the headings, then the rows; all have the same number of cells.
        align: the side to which cells are aligned, one for all columns or one for each.

    Returns:
        a line for each row, without trailing blanks.

    Raises:
        ValueError: if the number of cells differs between rows, or from that of alignments.
    """
    columns = list(zip(*rows, strict=True))
    sides = [align] * len(columns) if isinstance(align, str) else align
    formats = [f"{_SIGNS[side]}{max(map(len, column))}" for side, column in zip(sides, columns, strict=True)]
    return ["  ".join(map(format, row, formats)).rstrip() for row in rows]
