"""A page as a browser reads it: its text, and what must be true of every page."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "img"})
SHAPES = frozenset({"rect", "line", "path", "polyline"})
ELEMENTS = frozenset(
    {
        *VOID,
        *SHAPES,
        *("html", "head", "title", "style", "body", "main", "header", "nav", "section", "footer", "h1", "h2"),
        *("h3", "h4", "p", "b", "a", "span", "bdi", "code", "small", "div", "ul", "li", "dl", "dt", "dd"),
        *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption", "svg"),
    }
)
ATTRIBUTES = frozenset(
    {
        *("lang", "charset", "name", "content", "http-equiv", "class", "style", "id", "href", "src", "alt"),
        *("dir", "scope", "colspan", "role", "aria-label", "aria-hidden", "viewbox", "preserveaspectratio"),
        *("x", "y", "x1", "x2", "y1", "y2", "width", "height", "rx", "points", "d"),
    }
)
APART = frozenset({"td", "th", "dt", "dd", "p", "li", "div", "b", "br", "span", "h1", "h2", "h3", "h4", "figcaption"})


class Page(HTMLParser):
    """The elements, links and text of a page, which is refused unless it is sound.

    Sound is: every element is closed where it was opened, no element and no attribute is one that the pages do not
    use, ids are unique and links within the page lead to one, every row of a table is as wide as its head, every
    picture has a name, and every coordinate is a number.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.figures: list[tuple[str, int]] = []
        """The caption of each figure, and how many shapes are drawn in it."""
        self._open: list[str] = []
        self._widths: list[list[int]] = []
        self.feed(html)
        self.close()
        assert self._open == [], "every element is closed"
        ids = self.values("id")
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in self.values("href") if link.startswith("#")} <= set(ids)

    @property
    def text(self) -> str:
        """All text but the style, with single blanks."""
        return " ".join("".join(self.pieces).split())

    @property
    def fetched(self) -> list[str]:
        """Where the page leads and what it loads."""
        return [value for name, value in self.attributes if name in ("href", "src")]

    def values(self, attribute: str) -> list[str]:
        """What an attribute is, wherever it is given."""
        return [value for name, value in self.attributes if name == attribute]

    def section(self, name: str) -> str:
        """The text of one section."""
        return self.part("section", f' id="{name}"')

    def part(self, tag: str, attributes: str = "") -> str:
        """The text of the first element of that tag."""
        found = re.search(rf"<{tag}{attributes}>(.*?)</{tag}>", self.html, re.DOTALL)
        assert found, (tag, attributes)
        return _Part(found[1]).text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._take(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES
        self._take(tag, attrs)

    def _take(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert tag in ELEMENTS and set(names) <= ATTRIBUTES and len(names) == len(set(names)), (tag, attrs)
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += given.items()
        if tag in APART:
            self.pieces.append(" ")
        if tag == "table":
            self._widths.append([])
        elif tag == "tr":
            self._widths[-1].append(0)
        elif tag in ("td", "th"):
            self._widths[-1][-1] += int(given.get("colspan", 1))
        elif tag == "figure":
            self.figures.append(("", 0))
        elif tag in SHAPES:
            self._take_shape(given)
        if given.get("role") == "img":
            assert given["aria-label"].strip() and "None" not in given["aria-label"]

    def _take_shape(self, given: dict[str, str]) -> None:
        numbers = [given.get(name, "0") for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height")]
        numbers += given.get("points", "").replace(",", " ").split()
        assert all(math.isfinite(float(number)) for number in numbers), given
        assert all(float(given.get(name, "0")) >= 0 for name in ("width", "height")), given
        if "figure" in self._open:
            caption, count = self.figures[-1]
            self.figures[-1] = caption, count + 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, tag
        if tag in APART:
            self.pieces.append(" ")
        if tag == "table":
            widths = self._widths.pop()
            assert len(set(widths)) <= 1, widths

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.pieces.append(data)
        if "figcaption" in self._open:
            caption, count = self.figures[-1]
            self.figures[-1] = caption + data, count


class _Part(Page):
    """A piece of a page, whose links may lead out of it."""

    def values(self, attribute: str) -> list[str]:
        return [value for value in super().values(attribute) if not value.startswith("#")]
