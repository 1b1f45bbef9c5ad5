"""What the start-up benchmark shows of its rows, on the terminal and as Markdown."""

from collections.abc import Iterable, Sequence

from bench.common.rows import Row, markdown, place
from fastarat.common.console import print_table, stdout


def print_tables(rows: Sequence[Row]) -> None:
    """Both tables, to stdout."""
    imports = [row for row in rows if row["case"] == "import"]
    starts = [row for row in rows if row["case"] == "first step" and row["correct"]]
    if imports:
        cells = [[r["module"], *(f"{r[key]:.3f}" for key in ("s_p20", "s_p50", "s_p80", "torch_s"))] for r in imports]
        print_table("importing, seconds beyond torch", ["module", "p20", "p50", "p80", "torch itself"], cells)
    for row in imports:
        if row["s_p50"] > row["promised_s"]:
            stdout.print(f"{row['module']} adds more than the {row['promised_s']} s that are promised", markup=False)
    if starts:
        parts = list(starts[0]["parts_s"])
        cells = [
            [r["cache"], *(f"{value:.2f}" for value in (*r["parts_s"].values(), r["seconds"], r["second_step_s"]))]
            for r in starts
        ]
        first = starts[0]
        title = f"{first['recipe']} ({first['compile']}, {first['kernels']}, {first['dtype']}), seconds"
        columns = ["caches", *(part.replace("_", " ") for part in parts), "to the first step", "second step"]
        print_table(title, columns, cells)


def as_markdown(rows: Iterable[Row]) -> str:
    """Seconds to the first step, and what imports cost; empty for no rows."""
    starts, imports = [], []
    for row in rows:
        if not row["correct"]:
            continue
        if row["case"] == "first step":
            step, in_it = f"{row['compile']}, {row['kernels']}, {row['dtype']}", list(row["parts_s"].values())[-1]
            starts.append([row["recipe"], step, row["cache"], f"{row['seconds']:.1f}", f"{in_it:.1f}", place(row)])
        else:
            seconds = f"{row['s_p50']:.2f} ({row['s_p20']:.2f}-{row['s_p80']:.2f})"
            imports.append([row["module"], seconds, f"{row['torch_s']:.2f}", place(row)])
    columns = ["recipe", "step", "caches", "seconds to the first step", "of it in that step", "machine"]
    parts = [markdown(columns, starts)] if starts else []
    columns = ["import", "seconds beyond torch: p50 (p20-p80)", "torch itself", "machine"]
    return "\n".join([*parts, markdown(columns, imports)] if imports else parts)


def headline(rows: Sequence[Row]) -> str:
    """In a line: seconds to the first step, and what importing all that training needs adds."""
    first = {row["cache"]: row["seconds"] for row in rows if row["correct"] and row["case"] == "first step"}
    added = [row["s_p50"] for row in rows if row["case"] == "import" and row["module"] == "fastarat.training.train"]
    parts = [f"{seconds:.1f} s {cache}" for cache, seconds in first.items()]
    return ", ".join([*parts, *(f"importing adds {seconds:.2f} s" for seconds in added[-1:])])
