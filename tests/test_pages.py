"""The pages for people: what they link to is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/*.md", "kernels/*.md", "bench/*.md", "fastarat/**/README.md")
PAGES = [path for place in PLACES for path in sorted(ROOT.glob(place))]


def anchors(text: str) -> set[str]:
    """What the site calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def broken(page: Path, text: str) -> Iterator[str]:
    """Links and pictures of a page that lead to no file, or to no heading of one."""
    text = re.sub(r"^```.*?^```$|`[^`]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    assert list(broken(page, page.read_text())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_begin_after_an_empty_line(page):
    """Else the site takes them for text."""
    assert re.findall(r"^(?!- |  ).+\n- ", page.read_text(), re.MULTILINE) == []


def test_a_link_that_leads_nowhere_is_seen():
    text = "[a](README.md) [b](docs/nowhere.md) [c](README.md#limits) [d](README.md#nothing) ![e](https://example.org)"
    assert list(broken(ROOT / "CHANGELOG.md", text)) == ["docs/nowhere.md", "README.md#nothing"]
