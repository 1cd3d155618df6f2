"""Tables of plain text, and names in them."""

from collections.abc import Sequence
from typing import Literal

Alignment = Literal["left", "right"]
# a cell that begins with one of these may be computed
FORMULA_SIGNS = ("=", "+", "-", "@")
_SIGNS = {"left": "<", "right": ">"}


def printable(text: str) -> str:
    """Escapes characters that would break a line or steer a terminal, such as a newline in a file's name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def csv_name(text: str) -> str:
    """A cell of a CSV file that a spreadsheet takes for text: a name such as `=cmd|…` is no formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA_SIGNS) else text


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
