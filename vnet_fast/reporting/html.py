"""The parts of a report's HTML page: one file that shows its pictures without a network."""

import base64
from html import escape
from pathlib import Path

# both colour schemes and print; the widest tables scroll by themselves
STYLE = """
:root { color-scheme: light dark; --face: #ffffff; --panel: #f6f7f9; --text: #1c1f24; --faint: #5b616b;
        --line: #d9dce1; --bar: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --face: #16181d; --panel: #1f2229; --text: #e6e8eb; --faint: #a2a8b2; --line: #383d47; --bar: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; background: var(--face);
       color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
p { margin: 0.5rem 0; max-width: 48rem; }
.faint { color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--faint); padding-bottom: 0.35rem; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.words { text-align: left; white-space: normal; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; white-space: normal; min-width: 8rem; }
td .share { display: block; height: 3px; background: var(--bar); margin-top: 1px; }
figure { margin: 1rem 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
figcaption { color: var(--faint); font-size: 0.9rem; margin-top: 0.35rem; max-width: 48rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.25rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; }
  table { font-size: 8pt; } th, td { padding: 1pt 4pt; } h2 { break-after: avoid; } tr { break-inside: avoid; }
  thead { display: table-header-group; } figure img { max-height: 23cm; width: auto; max-width: 100%; } }
"""


def page(title, subtitle, sections):
    """The whole page.

    Args:
        title, subtitle: text.
        sections: list of (heading, list of HTML).

    Returns:
        HTML.
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="faint">{escape(subtitle)}</p>']
    for heading, content in sections:
        parts += ["<section>", f"<h2>{escape(heading)}</h2>", *content, "</section>"]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            # nothing is fetched, whatever stands in a case's name
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
            "<body>",
            *parts,
            "</body></html>\n",
        ]
    )


def paragraph(text):
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def table(headings, rows, caption, words=()):
    """A table that scrolls by itself where the page is narrow.

    Args:
        headings: text of each column.
        rows: lists of cells: text, or what `with_bar` returned; the first is the row's name.
        caption: text above it.
        words: indices of the columns that hold text, set to the left.
    """
    lines = [f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption, quote=True)}">', "<table>"]
    lines += [f"<caption>{escape(caption)}</caption>"]
    lines += ["<thead><tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in headings) + "</tr></thead>"]
    lines += ["<tbody>"]
    for first, *cells in rows:
        shown = "".join(
            f"<td{' class=words' if index in words else ''}>{_cell(cell)}</td>" for index, cell in enumerate(cells, 1)
        )
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{shown}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def with_bar(text, share):
    """A cell with a bar below its number, `share` of the width that stands for 1."""
    return text, min(1.0, max(0.0, share))


def _cell(cell):
    if isinstance(cell, str):
        return escape(cell)
    text, share = cell
    return f'{escape(text)}<span class="share" style="width:{100 * share:.1f}%"></span>'


def picture(light, dark, alt, caption):
    """A picture in the page itself, in both colour schemes.

    Args:
        light, dark: paths of PNGs of one size.
        alt: what it shows, for those who do not see it.
        caption: text below it.
    """
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
        f'<img src="{_data(light)}" alt="{escape(alt, quote=True)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def side_by_side(pictures):
    """Pictures beside each other where there is room."""
    return '<div class="side">' + "".join(pictures) + "</div>"


def _data(path):
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")
