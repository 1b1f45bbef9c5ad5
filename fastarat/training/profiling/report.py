"""A profile as data (`profile.json`), as a table (`profile.txt`) and as a picture (`profile.png`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastarat.common.figures import COLOURS, figure_of
from fastarat.training.profiling.cost import Cost
from fastarat.training.profiling.parts import PARTS
from fastarat.training.profiling.roofs import Roofs
from fastarat.training.profiling.trace import GAPS, Times

_MOST_UNKNOWN = 5


def summary(times: Times, num_steps: int, costs: dict[Any, Cost], roofs: Roofs) -> dict[str, Any]:
    """The table as data, each figure of one step. `roof_share`: the time that the part would take at its own roof,
    by the slower of bytes and flops, of the time that it took; None where it took none, and for the gaps."""

    def row(part: str) -> dict[str, Any]:
        milliseconds = times.parts.get(part, 0.0) / num_steps
        cost = costs.get(part, Cost())
        least_ms = 1e3 * max(cost.bytes / roofs.bytes_per_s, cost.flops / roofs.flops_per_s)
        return {
            "part": part,
            "ms": milliseconds,
            "share": milliseconds * num_steps / max(sum(times.parts.values()), 1e-9),
            "gb": cost.bytes / 1e9,
            "gflop": cost.flops / 1e9,
            "roof_share": least_ms / milliseconds if milliseconds and part != GAPS else None,
        }

    return {
        "roofs": roofs._asdict(),
        "parts": [row(part) for part in (*PARTS, GAPS)],
        "unrecognised_ms": {name: ms / num_steps for name, ms in list(times.unknown.items())[:_MOST_UNKNOWN]},
    }


def as_text(profile: dict[str, Any]) -> str:
    """The table, with what it was measured on above and what a reader has to know below."""
    what = "{recipe}, batch {batch}, {attack_steps} attack steps, {dtype}, kernels {kernels}, compile {compile}"
    speed = "{ms_a_step:.2f} ms a step while recorded ({recorded_steps} steps), {ms_a_step_unrecorded:.2f} ms before"
    roofs = profile["roofs"]
    lines = [
        what.format(**profile),
        f"{profile['device']}, torch {profile['torch']}: {roofs['flops_per_s'] / 1e12:,.2f} TFLOP/s in a large matrix "
        f"product, {roofs['bytes_per_s'] / 1e9:,.0f} GB/s in a large copy",
        speed.format(**profile) + f"; {profile['launches_a_step']:,.0f} launches a step",
        "",
        f"{'part':<18} {'ms':>9} {'share':>8} {'GB':>9} {'GFLOP':>10} {'of its roof':>12}",
    ]
    for row in profile["parts"]:
        share = "" if row["roof_share"] is None else f"{100 * row['roof_share']:.1f} %"
        counts = "" if row["part"] == GAPS else f"{row['gb']:9.3f} {row['gflop']:10,.1f} {share:>12}"
        lines.append(f"{row['part']:<18} {row['ms']:9.2f} {100 * row['share']:6.1f} % {counts}".rstrip())
    total = [sum(row[name] for row in profile["parts"]) for name in ("ms", "share", "gb", "gflop")]
    lines.append(f"{'all':<18} {total[0]:9.2f} {100 * total[1]:6.1f} % {total[2]:9.3f} {total[3]:10,.1f}")
    return "\n".join([*lines, "", *_remarks(profile)]) + "\n"


def _remarks(profile: dict[str, Any]) -> Iterator[str]:
    if profile["compile"] != "eager":
        yield "GB: what the step moves at the least, every part fused; a compiled step may move more."
    fused = [row["part"] for row in profile["parts"] if row["gb"] and not row["ms"]]
    if fused:
        yield f"No kernels of their own, the compiler having put them into other parts': {', '.join(fused)}."
    if any((row["roof_share"] or 0) > 1 for row in profile["parts"]):
        yield "More than 100 % of a roof: what it moves stayed in a cache, which a large copy does not."
    if profile["unrecognised_ms"]:
        yield "Counted as the rest, their names being unknown (ms a step):"
        for name, milliseconds in profile["unrecognised_ms"].items():
            yield f"  {milliseconds:8.3f}  {name[:100]}"


def profile_picture(path: Path, profile: dict[str, Any]) -> None:
    """Draw a PNG of each part's share of a step's time, and of how near it is to its roof."""
    rows = profile["parts"]
    names = [row["part"] for row in rows]
    with figure_of(path, 1, 2, (10, 3.8), sharey=True) as (_, ((left, right),)):
        shares = [100 * row["share"] for row in rows]
        labels = [f"{share:.0f} %  ({row['ms']:.3g} ms)" for share, row in zip(shares, rows, strict=True)]
        bars = left.barh(names, shares, color=[*[COLOURS[0]] * (len(rows) - 1), "0.6"])
        left.bar_label(bars, labels, padding=4, fontsize=9)
        left.set(xlabel="share of the step's time, %", xlim=(0, 1.35 * max(shares)))
        left.set_title(f"{profile['recipe']}: {profile['ms_a_step']:.3g} ms a step", fontsize=10)
        roofs = [100 * (row["roof_share"] or 0) for row in rows]
        bars = right.barh(names, [min(roof, 100) for roof in roofs], color=COLOURS[2])
        known = [f"{roof:.2g} %" if roof < 10 else f"{roof:.0f} %" for roof in roofs]
        labels = [text if row["roof_share"] is not None else "" for text, row in zip(known, rows, strict=True)]
        right.axvline(100, color="0.3", linewidth=1, linestyle="--", zorder=0)
        for label in right.bar_label(bars, labels, padding=4, fontsize=9):
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        right.set(xlabel="share of its own roof, %", xlim=(0, 125))
        settings = f"batch {profile['batch']}, {profile['dtype']}, kernels {profile['kernels']}, {profile['compile']}"
        right.set_title(f"{profile['device']}, {settings}", fontsize=10)
        left.invert_yaxis()
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
