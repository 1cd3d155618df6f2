"""Renders a report as one HTML file that contains its pictures and style sheet and loads nothing from a network."""

import base64
import hashlib
import importlib.resources
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from vnet_fast.reporting.viewer import Viewer

PACKAGE = "vnet_fast.reporting"
TEMPLATE, STYLE_SHEET, SCRIPT = "report.html.j2", "report.css", "viewer.js"


@dataclass(frozen=True)
class Bar:
    """A table's cell with a bar below its text.

    Args:
        text: of the cell.
        share: length of the bar as a fraction of the cell's width; it is clipped to 0 to 1.
    """

    text: str
    share: float

    @property
    def width(self) -> str:
        """The length of the bar in CSS."""
        return f"{100 * min(1.0, max(0.0, self.share)):.1f}%"


@dataclass(frozen=True)
class Table:
    """A table, which scrolls by itself where the page is narrow.

    Args:
        headings: text of each column.
        rows: lists of cells; the first cell of a row is its name.
        caption: text above the table.
        text_columns: indices of columns whose cells are aligned to the left, as text; the others hold numbers.
        of_cases: whether the rows are cases, whose names lead to the viewer.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    caption: str
    text_columns: Collection[int] = ()
    of_cases: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture in two colour schemes.

    Args:
        light, dark: paths of PNGs of the same size.
        alt: describes the picture to readers who do not see it.
        caption: text below the picture.
    """

    light: Path
    dark: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        heading: its text.
        tables: shown first.
        text: a paragraph after the tables, or "".
        pictures: shown after the text.
        side_by_side: whether pictures are beside each other where the page is wide enough.
        viewer: shown last, or None.
    """

    heading: str
    tables: Sequence[Table] = ()
    text: str = ""
    pictures: Sequence[Picture] = ()
    side_by_side: bool = False
    viewer: Viewer | None = None


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Renders the page; all texts are escaped.

    Args:
        title, subtitle: text.
        sections: in their order on the page.

    Returns:
        HTML.
    """
    style, script = (
        importlib.resources.files(PACKAGE).joinpath(name).read_text(encoding="utf-8") for name in (STYLE_SHEET, SCRIPT)
    )
    template = _environment().get_template(TEMPLATE)
    script = script if any(section.viewer for section in sections) else ""
    return template.render(title=title, subtitle=subtitle, sections=sections, style=style, script=script)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(PACKAGE, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_url"] = _data_url
    environment.filters["digest"] = _digest
    return environment


def _data_url(path: Path) -> str:
    """A PNG file as a URL that contains it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _digest(script: str) -> str:
    """The digest by which the page's policy allows a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
