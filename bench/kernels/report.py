"""What the kernel benchmark prints, from its rows: a table, geometric means, and the batch-norm's verdict."""

from collections.abc import Iterator, Sequence
from math import exp, log, prod
from statistics import mean

from bench.common.rows import Row, markdown
from bench.kernels.dual_batch_norm import LARGE_BYTES
from fastarat.common.console import print_table, stdout

OURS = ("triton", "twin")
ITEM_SIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
TARGET, AIM = 0.85, 0.92
"""shares of copy bandwidth that the batch-norm has to reach, and should"""


def print_tables(rows: list[Row]) -> None:
    """The table, geometric means and verdicts, to stdout."""
    print_table("kernels: milliseconds of one call (median)", *table(rows))
    for line in [*mean_lines(rows), *verdicts(rows)]:
        stdout.print(line, markup=False)


def as_markdown(rows: list[Row]) -> str:
    """Every kernel beside eager PyTorch, inductor and apex."""
    if not rows:
        return "Not measured yet: it takes a GPU.\n"
    lines = [f"- {line}" for line in (*mean_lines(rows), *verdicts(rows))]
    return "\n".join([markdown(*table(rows)), *lines]) + "\n"


def headline(rows: Sequence[Row]) -> str:
    """In a line: the share of a copy's bandwidth that our own variants reach."""
    own = [row["bandwidth_share"] for row in rows if row["variant"] in OURS and row["bandwidth_share"]]
    if not own:
        return ""
    return f"{100 * min(own):.0f} to {100 * max(own):.0f} % of a copy's bandwidth in {len(own)} cases"


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: a line for each case and direction, a column for each variant."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    baselines, ours = [v for v in variants if v not in OURS], [v for v in variants if v in OURS]
    columns = ["kernel", "case", "dtype", "direction", *baselines, *ours]
    columns += [f"inductor / {ours[0] if ours else 'ours'}", "% of copy", "choice"]
    cells = []
    for key, measured in by_case(rows).items():
        own = next((measured[variant] for variant in ours if variant in measured), None)
        share = own["bandwidth_share"] if own else None
        found = ratio(measured)
        cells.append(
            [
                *key,
                *(_milliseconds(measured.get(variant)) for variant in [*baselines, *ours]),
                f"{found:.2f}" if found else "-",
                f"{100 * share:.1f}" if share else "-",
                next(iter(measured.values()))["choice"] or "-",
            ]
        )
    return columns, cells


def by_case(rows: list[Row]) -> dict[tuple[str, str, str, str], dict[str, Row]]:
    """The rows of each (kernel, case, dtype, direction) by variant, in order."""
    found: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        key = (row["kernel"], row["case"], row["dtype"], row["direction"])
        found.setdefault(key, {})[row["variant"]] = row
    return found


def ratio(measured: dict[str, Row]) -> float | None:
    """How much longer inductor takes than our kernel; None unless both are right and timed."""
    times = [measured[variant]["ms_p50"] for variant in ("inductor", *OURS) if variant in measured]
    return times[0] / times[1] if "inductor" in measured and len(times) == 2 and None not in times else None


def _milliseconds(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['ms_p50']:.4f}" if row["correct"] else "WRONG"


def geometric_means(rows: list[Row]) -> dict[tuple[str, str], tuple[float, int]]:
    """(kernel, direction) to the geometric mean of inductor / ours over the nets' layer shapes, and their number.

    A kernel with both directions has "both" too.
    """
    ratios: dict[tuple[str, str], list[float]] = {}
    for (kernel, _, _, direction), measured in by_case([row for row in rows if row["layer"]]).items():
        found = ratio(measured)
        if found:
            ratios.setdefault((kernel, direction), []).append(found)
    for kernel in dict.fromkeys(kernel for kernel, _ in ratios):
        directions = [(kernel, direction) for direction in ("forward", "backward") if (kernel, direction) in ratios]
        if len(directions) == 2:
            ratios[kernel, "both"] = [value for key in directions for value in ratios[key]]
    return {key: (exp(mean(map(log, values))), len(values)) for key, values in ratios.items()}


def mean_lines(rows: list[Row]) -> Iterator[str]:
    """A line for each geometric mean; one line where there is none."""
    means = geometric_means(rows)
    for (kernel, direction), (value, number) in means.items():
        verdict = "faster than inductor" if value > 1 else "not faster than inductor"
        yield f"{kernel} {direction}: inductor / ours {value:.3f} (geometric mean of {number} layer shapes): {verdict}"
    if not means:
        yield "inductor / ours: nothing to compare"


def verdicts(rows: list[Row]) -> Iterator[str]:
    """The batch-norm's share of copy bandwidth on maps of 256 MB and more, against the target and the aim."""
    ours = [row for row in rows if (row["kernel"], row["variant"]) == ("dual_batch_norm", "triton")]
    large = [row for row in ours if prod(row["shape"]) * ITEM_SIZE[row["dtype"]] >= LARGE_BYTES]
    for row in large:
        what = f"dual_batch_norm {row['case']} {row['dtype']} {row['direction']}"
        share = row["bandwidth_share"]
        if share is None:
            yield f"{what}: WRONG, so no speed"
            continue
        verdict = "below the target of 85 %"
        if share >= TARGET:
            verdict = "meets the aim of 92 %" if share >= AIM else "meets the target of 85 %, below the aim of 92 %"
        if row["least_bytes"] > row["bytes"]:
            most = row["bytes"] / row["least_bytes"]
            verdict += f" (the residual is not counted: {100 * most:.0f} % is all that copy bandwidth allows)"
        speeds = f"{row['gb_per_s']:.0f} of {row['copy_gb_per_s']:.0f} GB/s"
        yield f"{what}: {100 * share:.1f} % of copy bandwidth ({speeds}): {verdict}"
    if not large:
        yield "dual_batch_norm: share of copy bandwidth not judged, which takes a GPU and maps of 256 MB and more"
