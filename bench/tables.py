"""Write the tables of README.md from result rows: `python -m bench.tables`; `--check` only compares.

A table stands between `<!-- table: SUITE -->` and `<!-- end -->`; nobody types numbers there.
"""

import re
import sys
from pathlib import Path

from bench.robustness import spread
from bench.rows import RESULTS, read_rows

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {"at": "AT", "arat": "AR-AT", "arat-swa": "AR-AT + SWA"}


def robustness_table(suite: str) -> str:
    """Mean and standard deviation over seeds of each method, as Markdown."""
    rows = [row for row in read_rows(RESULTS / "robustness.jsonl") if row["suite"] == suite]
    lines = ["| method | seeds | clean, % | PGD-20, % | minutes |", "| --- | --- | --- | --- | --- |"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        cells = [spread([row[name] for row in of_method]) for name in ("clean", "pgd20", "minutes")]
        lines.append(f"| {TITLES[method]} | {len(of_method)} | {' | '.join(cells)} |")
    first = rows[0]
    threads = " or ".join(str(n) for n in sorted({row["threads"] for row in rows}))
    where = first["gpu"] or f"CPU, {threads} thread{'' if threads == '1' else 's'}"
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    eps = f"eps {first['config']['attack']['eps_255']:g}/255"
    what = f"net {first['model']}, data {first['dataset']}, {first['epochs']} epochs, {eps}"
    what += f", {first['num_images']:,} test images"
    return "\n".join([*lines, "", f"{what}; {where}, torch {first['torch']}, commit {commits}.", ""])


def render(text: str) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + robustness_table(match[2]) + match[3], text)


def main() -> int:
    """Rewrite the page, or say whether it is up to date."""
    before = README.read_text()
    after = render(before)
    if "--check" in sys.argv:
        return 0 if before == after else 1
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
