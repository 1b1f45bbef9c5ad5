"""The page of a report in headless Chromium, where that is installed: on a phone, in the dark, as it was written.

A copy of the page may run a script, which measures it and writes what it finds into the page's title. With
$FASTARAT_AXE, the path of axe-core's axe.min.js, that script looks for what people with disabilities would stumble on.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000"),
)
MEASURE = """
const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
const found = {
  sideways: root.scrollWidth - root.clientWidth,
  ink: frame.contentWindow.getComputedStyle(page.body).color,
  pictures: [...page.images].filter(image => !image.complete || !image.naturalWidth).length,
  drawn: [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 50).length,
};
const axe = frame.contentWindow.axe;
Promise.resolve(axe ? axe.run(page, {resultTypes: ["violations"]}) : {violations: []}).then(result => {
  found.violations = result.violations.filter(one => ["serious", "critical"].includes(one.impact)).map(one => one.id);
  document.title = JSON.stringify(found);
});
"""


def measured(report: Path, folder: Path, width: int, *flags: str) -> dict:
    """What a browser makes of the page in a window of this width: in a frame, which may be narrower than any window."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    if axe := os.environ.get("FASTARAT_AXE"):
        text = text.replace("</body>", f"<script>{Path(axe).read_text()}</script></body>")
    (folder / "page.html").write_text(
        f'<!doctype html><title></title><iframe srcdoc="{html.escape(text)}" style="width: {width}px; height: 800px" '
        f"></iframe><script>onload = () => {{ {MEASURE} }};</script>"
    )
    command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, f"file://{folder / 'page.html'}"], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory) -> Path:
    from fastarat.reports.report import write_report

    run = shutil.copytree(trained, tmp_path_factory.mktemp("browser") / "run")
    write_report([run], run / "report.html", num_images=60)
    return run / "report.html"


@pytest.mark.parametrize(
    ("width", "flags"), [(360, ()), (1280, ()), (1280, ("--blink-settings=preferredColorScheme=0",))]
)
def test_the_page_fits_its_window_and_shows_all_its_pictures(report, tmp_path, width, flags):
    found = measured(report, tmp_path, width, *flags)
    assert found["sideways"] == 0 and found["pictures"] == 0 and found["drawn"] >= 4
    assert found["violations"] == []
    brightness = sum(map(int, re.findall(r"\d+", found["ink"])[:3]))
    assert (brightness > 384) == bool(flags), "ink is dark by day and bright by night"
