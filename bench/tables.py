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
from bench.autoattack import rows as autoattack_rows
from bench.common.rows import RESULTS, Row, markdown, place, read_rows
from bench.faults import report as faults_report
from bench.kernels import report as kernel_report
from bench.ladder import report as throughput_report
from bench.loaders import report as loaders_report
from bench.robustness import report as robustness_report
from bench.robustness.suites import SUITES
from bench.soak import report as soak_report
from bench.speedrun import report as speedrun_report
from bench.speedrun.suites import SUITES as RACES

ROOT = Path(__file__).parents[1]
NAMES = ("results", "speed", "cluster", "training")
PAGES = tuple(ROOT / page for page in ("README.md", "bench/README.md", *(f"docs/{name}.md" for name in NAMES)))
IMAGES = ROOT / "docs" / "images"
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
LEGEND = (
    "Ratios: median (least-most) of turns. % of copy: what the step would need at the bandwidth of a large copy, if it "
    "moved no more than the fused kernels do; % of peak: its matrix work at 790 TFLOP/s, an H200's in bf16. Both say "
    "how near the speed is to that bound, not what a variant moves. GB: the most while it was built, compiled and "
    "compared."
)


def robustness_table(suite: str) -> str:
    """Mean and standard deviation over seeds of each method, as Markdown."""
    rows = robustness_report.rows_of(suite, read_rows(RESULTS / "robustness.jsonl"))
    if not rows:
        return "Not measured yet.\n"
    first = rows[0]
    threads = " or ".join(str(n) for n in sorted({row["threads"] for row in rows}))
    where = first["gpu"] or f"CPU, {threads} thread{'' if threads == '1' else 's'}"
    commits = ", ".join(sorted({row["trained_by"] for row in rows}))
    what = f"net {first['model']}, data {first['dataset']}, {first['epochs']} epochs, eps {_eps_255(first):g}/255"
    what += f", {first['num_images']:,} test images"
    attacked = {row["num_autoattack"] for row in rows if row["autoattack"] is not None}
    if attacked and attacked != {first["num_images"]}:
        what += f", {max(attacked):,} of them for AutoAttack"
    options = sorted({option for row in rows for option in row.get("autoattack_options") or ()})
    what += f" (not the standard's setting: {'; '.join(options)})" if options else ""
    table = markdown(*robustness_report.table(rows))
    return f"{table}\n{what}; {where}, torch {first['torch']}, trained by commit {commits}.\n"


def _eps_255(row: Row) -> float:
    evaluated = row["config"]["evaluation"].get("eps_255")
    return row["config"]["attack"]["eps_255"] if evaluated is None else evaluated


def autoattack_table() -> str:
    """The newest comparison of each attack with the reference's, as Markdown."""
    rows = {row["attack"]: row for row in read_rows(RESULTS / "autoattack.jsonl")}
    if not rows:
        return "Not measured yet.\n"
    first = next(iter(rows.values()))
    what = f"{autoattack_rows.title(first)}; {place(first)}"
    return f"{markdown(*autoattack_rows.table(list(rows.values())))}\n{what}.\n"


def loaders_table() -> str:
    """Every comparison of the loaders, the newest first, as Markdown."""
    groups = loaders_report.groups(read_rows(RESULTS / "loaders.jsonl"))
    if not groups:
        return "Not measured yet.\n"
    parts = []
    for rows in groups:
        parts += [f"**{loaders_report.title(rows[0])}**\n", markdown(*loaders_report.table(rows))]
        parts.append(f"{loaders_report.caption(rows)}.\n")
    return "\n".join([*parts, f"{loaders_report.LEGEND}\n"])


def ladders_table() -> str:
    """Every ladder with its picture, the newest first, as Markdown."""
    found = _ladders()
    parts = [] if any(rows[0]["gpu"] for rows in found) else ["On a GPU: not measured yet.\n"]
    for rows in found:
        parts.append(f"**{throughput_report.title(rows[0])}**\n")
        if any(row["images_per_s"] is not None for row in rows):
            parts.append(f"![images/s of each variant](images/{picture_name(rows)})\n")
        parts.append(ladder_table(rows))
    return "\n".join([*parts, f"{LEGEND}\n"] if found else parts)


def ladder_table(rows: list[Row]) -> str:
    """A ladder, with what it was measured on, as Markdown."""
    what = f"{throughput_report.title(rows[0])}; {place(rows[0])}"
    return f"{markdown(*throughput_report.columns_of(rows))}\n{what}.\n"


def startup_table() -> str:
    """Seconds to the first step, and what imports cost, as Markdown."""
    rows = [row for row in read_rows(RESULTS / "startup.jsonl") if row["correct"]]
    starts, imports = [], []
    for row in rows:
        if row["case"] == "first step":
            step, in_it = f"{row['compile']}, {row['kernels']}, {row['dtype']}", list(row["parts_s"].values())[-1]
            starts.append([row["recipe"], step, row["cache"], f"{row['seconds']:.1f}", f"{in_it:.1f}", place(row)])
        else:
            seconds = f"{row['s_p50']:.2f} ({row['s_p20']:.2f}-{row['s_p80']:.2f})"
            imports.append([row["module"], seconds, f"{row['torch_s']:.2f}", place(row)])
    columns = ["recipe", "step", "caches", "seconds to the first step", "of it in that step", "machine"]
    parts = [markdown(columns, starts)] if starts else []
    columns = ["import", "seconds beyond torch: p50 (p20-p80)", "torch itself", "machine"]
    return "\n".join([*parts, markdown(columns, imports)] if imports else parts) or "Not measured yet.\n"


def faults_table() -> str:
    """What became of a run for each fault, as Markdown."""
    return faults_report.as_markdown(list(read_rows(RESULTS / "faults.jsonl"))) or "Not measured yet.\n"


def speedrun_table(only: str | None = None) -> str:
    """Every race to a standard recipe's robustness with its whole ladder, as Markdown; or the ends of one suite's."""
    parts = []
    for suite, rows in _races():
        if only not in (None, suite):
            continue
        rows = speedrun_report.ends(rows) if only else rows
        commits = ", ".join(sorted({row["trained_by"] for row in rows}))
        where = place({**rows[0], "commit": commits})
        parts += [] if only else [f"**{suite}**\n"]
        parts.append(markdown(*speedrun_report.table(suite, rows)))
        parts.append(f"{speedrun_report.caption(suite, rows)}; {where}.\n")
        parts += [] if only else [f"![seconds to the model of each](../docs/images/{race_picture(suite)})\n"]
    return "\n".join(parts) or "Not measured yet.\n"


def race_picture(suite: str) -> str:
    """The file of a race's picture."""
    return f"speedrun-{suite}.png"


def _races() -> list[tuple[str, list[Row]]]:
    """The suites that have rows, with these."""
    rows = list(read_rows(RESULTS / "speedrun.jsonl"))
    races = ((suite, speedrun_report.rows_of(suite, rows)) for suite in RACES)
    return [(suite, own) for suite, own in races if own]


def soak_table() -> str:
    """All soaks in a sentence."""
    return soak_report.as_markdown(list(read_rows(RESULTS / "soak.jsonl"))) or "Not measured yet.\n"


def kernels_table() -> str:
    """Every kernel beside eager PyTorch, inductor and apex, as Markdown."""
    rows = list(read_rows(RESULTS / "kernels.jsonl"))
    if not rows:
        return "Not measured yet: it takes a GPU.\n"
    lines = [*kernel_report.mean_lines(rows), *kernel_report.verdicts(rows)]
    return "\n".join([markdown(*kernel_report.table(rows)), *(f"- {line}" for line in lines)]) + "\n"


def _ladders() -> list[list[Row]]:
    return list(throughput_report.ladders(read_rows(RESULTS / "throughput.jsonl")).values())


def picture_name(rows: list[Row]) -> str:
    """The file of a ladder's picture."""
    first = rows[0]
    where = re.sub(r"\W+", "-", f"{first['gpu'] or 'cpu'}-{first['dataset']}-{first['commit']}".lower())
    return f"throughput-{first['model']}-{first['method']}-{first['batch']}-{first['attack_steps']}-{where}.png"


TABLES: dict[str, Callable[[], str]] = {
    **{
        suite: partial(robustness_table, suite)
        for suite in ("digits", "digits-formats", "cifar10-tiny", "cifar10-tiny-formats", "ablation")
    },
    "autoattack": autoattack_table,
    "loaders": loaders_table,
    "ladders": ladders_table,
    "startup": startup_table,
    "kernels": kernels_table,
    "scaling": scaling.as_markdown,
    "shared-steps": shared_steps.as_markdown,
    "speedrun": speedrun_table,
    "race": partial(speedrun_table, "cifar10-tiny"),
    "faults": faults_table,
    "soak": soak_table,
}


def render(text: str) -> str:
    """The page with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    """Rewrite the pages and pictures, or say whether the pages are up to date."""
    texts = {page: page.read_text() for page in PAGES}
    if "--check" in sys.argv:
        return 0 if all(render(text) == text for text in texts.values()) else 1
    for page, text in texts.items():
        page.write_text(render(text))
    for rows in _ladders():
        if any(row["images_per_s"] is not None for row in rows):
            throughput_report.picture(IMAGES / picture_name(rows), rows)
    for suite, rows in _races():
        speedrun_report.picture(IMAGES / race_picture(suite), suite, rows)
    for suite in SUITES:
        rows = robustness_report.rows_of(suite, read_rows(RESULTS / "robustness.jsonl"))
        if rows:
            robustness_report.picture(IMAGES / f"{suite}.png", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
