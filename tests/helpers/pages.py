"""An HTML page read as a browser does, and what every page that stands alone has to be."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "img", "br", "link", "input", "hr"}
MOST_BYTES = 5_000_000


class Page(HTMLParser):
    """The elements of a page, in order: name, attributes, and the text within."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.source = path, path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that is read, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def every(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def assert_stands_alone(page: Page) -> None:
    """It is whole, small, asks for nothing elsewhere and runs nothing."""
    assert page.open == [] and page.path.stat().st_size < MOST_BYTES
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
        assert not re.search(r"url\((?!#)", attributes.get("style", ""))
    assert not re.search(r"@import|url\((?!#)", page.source)
    (policy,) = (meta["content"] for meta in page.every("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def assert_can_be_read_by_all(page: Page) -> None:
    """Landmarks, headings in order, names for pictures, heads for tables, ids that are there once."""
    tags = Counter(tag for tag, _ in page.elements)
    assert all(tags[tag] == 1 for tag in ("main", "header", "nav", "footer", "h1", "title"))
    assert page.every("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert all(image.get("alt") for image in page.every("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.every("svg"))
    assert tags["caption"] == tags["table"] and all(cell.get("scope") for cell in page.every("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert not [name for name, number in Counter(ids).items() if number > 1]
    assert {link["href"][1:] for link in page.every("a")} <= set(ids)
    regions = [attributes for _, attributes in page.elements if attributes.get("role") == "region"]
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)
