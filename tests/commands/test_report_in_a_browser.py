"""The page of a report in headless Chromium, where that is installed: on a phone, on a desk, in the dark, by keyboard,
printed, and by the rules of axe-core for people with disabilities."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
MOST_STOPS = 400


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory) -> Path:
    from fastarat.reports.report import write_report

    run = shutil.copytree(trained, tmp_path_factory.mktemp("browser") / "run")
    write_report([run], run / "report.html", num_images=60)
    return run / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, report: Path, **settings) -> tuple["playwright.Page", list[str]]:
    """The page, and what it asks for as it loads."""
    page, asked = browser.new_page(**settings), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    return page, [url for url in asked if not url.startswith("data:")]


@pytest.mark.parametrize(("window", "scheme"), [(PHONE, "light"), (PHONE, "dark"), (DESK, "light"), (DESK, "dark")])
def test_the_page_fits_its_window_shows_all_its_pictures_and_asks_for_nothing(browser, report, window, scheme):
    page, asked = opened(browser, report, viewport=window, color_scheme=scheme)
    assert asked == [report.as_uri()]
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") == 0
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert (
        sum((picture.bounding_box() or {"height": 0})["height"] > 50 for picture in page.query_selector_all("svg")) >= 4
    )
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 384) == (scheme == "dark"), "ink is bright in the dark"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, report, scheme):
    page, _ = opened(browser, report, viewport=DESK, color_scheme=scheme, bypass_csp=True)
    for summary in page.query_selector_all("summary"):
        summary.click()
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20
    assert [one["id"] for one in found["violations"] if one["impact"] in ("serious", "critical")] == []


def test_everything_is_reached_and_opened_by_keyboard(browser, report):
    page, _ = opened(browser, report, viewport=DESK)
    wanted = page.locator("a[href], summary, [tabindex='0']").evaluate_all(
        "all => all.filter(one => one.checkVisibility()).map((one, i) => (one.dataset.number = i, i))"
    )
    reached = []
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        number, outline = page.evaluate(
            "[document.activeElement.dataset.number, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if number is None:
            break
        reached.append(int(number))
        assert outline != "none", "what has the focus is seen to have it"
    assert reached == wanted and len(wanted) > 20
    details = page.locator("details").first
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.evaluate("one => one.open")


def test_printed_it_is_black_on_white_whole_and_without_links_that_lead_nowhere(browser, report, tmp_path):
    page, _ = opened(browser, report, viewport=DESK, color_scheme="dark")
    page.emulate_media(media="print")
    look = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert look == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"] and not page.locator("nav").is_visible()
    cut = "[...document.querySelectorAll('.wide, pre')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 with Chromium's own margins, in its pixels
    assert page.evaluate(f"{cut}.map(one => one.ariaLabel || one.textContent)") == []
    assert page.pdf(path=tmp_path / "page.pdf", format="A4").startswith(b"%PDF")
