import re

import matplotlib.image
import numpy as np

from tests.reporting.page_reader import PageReader
from vnet_fast.reporting import html


def write_picture(path, level):
    matplotlib.image.imsave(path, np.full((2, 2), level), vmin=0, vmax=1)
    return path


def test_texts_are_escaped():
    """The name of a case can't become part of the page's structure."""
    table = html.Table(["<u>", "<i>"], [["<a>", html.Bar("</table>", 0.5)], ['"', "<td>"]], '<hr>"')
    page = PageReader(html.page("<b>t", 'a"', [html.Section("<i>h", [table], "<p>{{ 7 * 7 }}")]))
    assert page.tables == [[["<u>", "<i>"], ["<a>", "</table>"], ['"', "<td>"]]]
    assert page.headings == ["<i>h"]
    assert "<p>{{ 7 * 7 }}" in page.texts
    assert page.labels == ['<hr>"']


def test_a_picture_of_the_page_is_escaped_too(tmp_path):
    light, dark = write_picture(tmp_path / "a.png", 1.0), write_picture(tmp_path / "b.png", 0.0)
    picture = html.Picture(light, dark, 'a" onload="x', "<script>")
    page = PageReader(html.page("t", "s", [html.Section("h", pictures=[picture], side_by_side=True)]))
    (source, image) = page.pictures
    assert (source["media"], image["alt"]) == ("(prefers-color-scheme: dark)", 'a" onload="x')
    assert page.content(source["srcset"]) == dark.read_bytes()
    assert page.content(image["src"]) == light.read_bytes()
    assert "<script>" in page.texts


def test_the_page_needs_no_network():
    text = html.page("t", "s", [])
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text
    assert text.startswith("<!DOCTYPE html>\n")
    assert not re.search(r"https?:|src=|url\(|<script|<link|@import", text)


def test_the_style_sheet_is_in_the_page():
    """Both colour schemes and print."""
    style = html.page("t", "s", []).partition("<style>")[2].partition("</style>")[0]
    assert "@media (prefers-color-scheme: dark)" in style
    assert "@media print" in style
    assert "&" not in style


def test_cells_of_a_table():
    """Text columns are aligned to the left; a bar is never longer than its cell."""
    rows = [["a", "b", html.Bar("1", 0.25)], ["c", "d", html.Bar("2", 1.7)], ["e", "f", html.Bar("3", -0.1)]]
    text = html.page("t", "s", [html.Section("h", [html.Table(["1", "2", "3"], rows, "c", text_columns={1})])])
    assert [cell for cell in ("b", "d", "f") if f'<td class="text">{cell}</td>' in text] == ["b", "d", "f"]
    assert re.findall(r'class="share" style="width:([^"]*)"', text) == ["25.0%", "100.0%", "0.0%"]
