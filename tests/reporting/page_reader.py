"""Reads the HTML of a report."""

import base64
from html.parser import HTMLParser


class PageReader(HTMLParser):
    """The content of a page; an AssertionError if an element is not closed.

    Args:
        text: HTML.

    Attributes:
        tables: rows of cells, as text.
        pictures: attributes of the elements `source` and `img`.
        headings: of the sections.
        labels: of the regions that scroll by themselves, and of other elements that have one.
        scripts: (attributes, content) of the elements `script`.
        texts: all other text.
    """

    VOID = frozenset({"meta", "img", "source", "br", "input"})
    PREFIX = "data:image/png;base64,"

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.pictures, self.headings, self.labels, self.texts = [], [], [], [], [], []
        self.scripts = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("img", "source"):
            self.pictures.append(attributes)
        elif tag == "script":
            self.scripts.append((attributes, ""))
        elif "aria-label" in attributes:
            self.labels.append(attributes["aria-label"])

    def handle_startendtag(self, tag, attributes):
        """Of an element of SVG, which closes itself."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        elif self.open[-1:] == ["script"]:
            attributes, content = self.scripts.pop()
            self.scripts.append((attributes, content + data))
        elif "h2" in self.open:
            self.headings.append(data)
        else:
            self.texts.append(data)

    def content(self, url):
        """The file that a URL contains."""
        assert url.startswith(self.PREFIX)
        return base64.b64decode(url.removeprefix(self.PREFIX))
