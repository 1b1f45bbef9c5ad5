"""Write every table of measured figures from result rows: `python -m bench.tables`; `--check` only compares.

In README.md, bench/README.md and under docs/ a table stands between `<!-- table: NAME -->` and `<!-- end -->`; pictures
are written to docs/images. Nobody types numbers there.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import scaling, shared_steps
from bench.autoattack import rows as autoattack
from bench.common.rows import RESULTS, Row, read_rows
from bench.faults import report as faults
from bench.kernels import report as kernels
from bench.ladder import report as ladders
from bench.loaders import report as loaders
from bench.robustness import report as robustness
from bench.soak import report as soak
from bench.speedrun import report as speedrun
from bench.startup import report as startup

ROOT = Path(__file__).parents[1]
NAMES = ("results", "speed", "cluster", "training")
PAGES = tuple(ROOT / page for page in ("README.md", "bench/README.md", *(f"docs/{name}.md" for name in NAMES)))
IMAGES = ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUITES = ("digits", "digits-formats", "cifar10-tiny", "cifar10-tiny-formats", "cifar10-resnet18-w32", "ablation")

TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    **{suite: ("robustness", partial(robustness.as_markdown, suite)) for suite in SUITES},
    "autoattack": ("autoattack", autoattack.as_markdown),
    "loaders": ("loaders", loaders.as_markdown),
    "ladders": ("throughput", ladders.as_markdown),
    "startup": ("startup", startup.as_markdown),
    "kernels": ("kernels", kernels.as_markdown),
    "scaling": ("scaling", scaling.as_markdown),
    "shared-steps": ("shared_steps", shared_steps.as_markdown),
    "speedrun": ("speedrun", speedrun.as_markdown),
    "race": ("speedrun", partial(speedrun.ends_as_markdown, "cifar10-tiny")),
    "faults": ("faults", faults.as_markdown),
    "soak": ("soak", soak.as_markdown),
}
"""the file of rows of each, and what writes them, or nothing where none are of it"""
PICTURES = {"throughput": ladders.pictures, "speedrun": speedrun.pictures, "robustness": robustness.pictures}
"""what draws the rows of a file"""


def table(name: str) -> str:
    """One of `TABLES`, as Markdown."""
    benchmark, as_markdown = TABLES[name]
    return as_markdown(_rows(benchmark)) or "Not measured yet.\n"


def render(text: str) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def main() -> int:
    """Rewrite the pages and pictures, or say whether the pages are up to date."""
    texts = {page: page.read_text() for page in PAGES}
    if "--check" in sys.argv:
        return 0 if all(render(text) == text for text in texts.values()) else 1
    for page, text in texts.items():
        page.write_text(render(text))
    for benchmark, pictures in PICTURES.items():
        pictures(IMAGES, _rows(benchmark))
    return 0


def _rows(benchmark: str) -> list[Row]:
    return list(read_rows(RESULTS / f"{benchmark}.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
