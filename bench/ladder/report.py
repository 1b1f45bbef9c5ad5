"""What the throughput benchmark shows of its rows: a table a ladder, on the terminal, as Markdown and as a picture."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.common.rows import Row, markdown, place
from bench.ladder.variants import BASES, NAMES, NEEDS_GPU, PLAIN
from fastarat.common.console import print_table, stdout
from fastarat.common.figures import COLOURS, figure_of
from fastarat.common.turns import ratio_text

Key = tuple[Any, ...]
LEGEND = (
    "Ratios: median (least-most) of turns. % of copy: what the step would need at the bandwidth of a large copy, if it "
    "moved no more than the fused kernels do; % of peak: its matrix work at 790 TFLOP/s, an H200's in bf16. Both say "
    "how near the speed is to that bound, not what a variant moves. GB: the most while it was built, compiled and "
    "compared."
)


def ladders(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The newest row of each variant, in the ladder's order, by (model, method, batch, attack steps, data set, GPU,
    commit); the newest ladder first."""
    found: dict[Key, dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row["date"], reverse=True):
        steps = row["config"]["benchmark"]["attack_steps"]
        key = (row["model"], row["method"], row["batch"], steps, row["dataset"], row["gpu"], row["commit"])
        found.setdefault(key, {}).setdefault(row["variant"], row)
    return {
        key: sorted(by_variant.values(), key=lambda row: NAMES.index(row["variant"]))
        for key, by_variant in found.items()
    }


def title(row: Row) -> str:
    """What a ladder measured."""
    steps = row["config"]["benchmark"]["attack_steps"] or row["attack_steps"]
    return f"{row['model']} {row['method']}, batch {row['batch']}, {steps} attack steps, data {row['dataset']}"


def columns_of(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells; columns that no row fills are left out."""
    cells = [_cells(row) for row in rows]
    filled = [name for name in cells[0] if any(row[name] not in ("", "-") for row in cells)]
    return filled, [[row[name] for name in filled] for row in cells]


def _cells(row: Row) -> dict[str, str]:
    mode = f" ({row['compile_mode']})" if row["compile_mode"] else ""
    cells = {"variant": row["variant"] + mode, "what it adds": row["adds"], "dtype": row["dtype"]}
    if row["images_per_s"] is None:
        wrong = row["error"] or "not timed"
        cells["images/s"] = wrong if wrong == NEEDS_GPU else f"no speed: {wrong.partition(':')[0]}"
        return cells | dict.fromkeys(
            ("ms a step", *map(_ratio_column, BASES), "% of peak", "% of copy", "GB", "GPU kernels"), "-"
        )
    return {
        **cells,
        "images/s": _speed(row["images_per_s"]),
        "ms a step": f"{row['ms_p50']:.1f} ({row['ms_p20']:.1f}-{row['ms_p80']:.1f})",
        **{_ratio_column(base): ratio_text(row["ratios"].get(base)) for base in BASES},
        "% of peak": f"{100 * row['mfu']:.1f}" if row["mfu"] else "-",
        "% of copy": f"{100 * row['bandwidth_share']:.1f}" if row["bandwidth_share"] else "-",
        "GB": f"{row['peak_memory_gb']:.1f}" if row["peak_memory_gb"] else "-",
        "GPU kernels": f"{row['launches']:,}" if row["launches"] else "-",
    }


def _ratio_column(base: str) -> str:
    return f"x {base}"


def as_markdown(rows: Iterable[Row]) -> str:
    """Every ladder with its picture, the newest first."""
    found = list(ladders(rows).values())
    parts = [] if any(ladder[0]["gpu"] for ladder in found) else ["On a GPU: not measured yet.\n"]
    for ladder in found:
        parts.append(f"**{title(ladder[0])}**\n")
        if _is_timed(ladder):
            parts.append(f"![images/s of each variant](images/{_picture_name(ladder)})\n")
        parts.append(f"{markdown(*columns_of(ladder))}\n{title(ladder[0])}; {place(*ladder)}.\n")
    return "\n".join([*parts, f"{LEGEND}\n"] if found else parts)


def print_tables(rows: list[Row]) -> None:
    """A table for each ladder with what is wrong under it."""
    for found in ladders(rows).values():
        print_table(f"{title(found[0])}; {place(*found)}", *columns_of(found))
        for row in found:
            if row["error"] and row["error"] != NEEDS_GPU:
                stdout.print(f"{row['variant']}: {row['error']}", markup=False)


def headline(rows: Sequence[Row]) -> str:
    """In a line: the fastest default of one net and method, and how many times as fast as plain PyTorch it is.

    Of several: how many variants have a speed.
    """
    timed = [row for row in rows if row["images_per_s"] is not None]
    if len({(row["model"], row["method"]) for row in rows}) > 1:
        return f"{len(timed)} of {len(rows)} variants have a speed"
    best = max((row for row in timed if row["variant"] == "default"), key=lambda row: row["images_per_s"], default=None)
    if best is None:
        return ""
    texts = [f"default {best['images_per_s']:,.0f} images/s at batch {best['batch']}"]
    for base in BASES:
        if found := best["ratios"].get(base):
            is_resolved = not found["low"] <= 1 <= found["high"]
            texts.append(f"{found['median']:.2f}x {base}" if is_resolved else f"not resolved from {base}")
    return ", ".join(texts)


def pictures(folder: Path, rows: Iterable[Row]) -> None:
    """Draw every ladder of which something has a speed."""
    for ladder in ladders(rows).values():
        if _is_timed(ladder):
            picture(folder / _picture_name(ladder), ladder)


def _is_timed(ladder: Sequence[Row]) -> bool:
    return any(row["images_per_s"] is not None for row in ladder)


def _picture_name(ladder: Sequence[Row]) -> str:
    first = ladder[0]
    where = re.sub(r"\W+", "-", f"{first['gpu'] or 'cpu'}-{first['dataset']}-{first['commit']}".lower())
    return f"throughput-{first['model']}-{first['method']}-{first['batch']}-{first['attack_steps']}-{where}.png"


def picture(path: Path, rows: list[Row]) -> None:
    """Bars of images/s of a ladder, with the ratio to the first, as a PNG."""
    timed = [row for row in rows if row["images_per_s"] is not None]
    with figure_of(path, 1, 1, (9, 0.45 * len(timed) + 1.3)) as (_, ((axes,),)):
        for i, row in enumerate(timed):
            speed, base = row["images_per_s"], row["ratios"].get("published")
            axes.barh(i, speed, color=_colour(row["variant"]))
            compared = f"   {ratio_text(base)}" if base and row["variant"] != "published" else ""
            axes.text(speed, i, f" {_speed(speed)}{compared}", va="center", fontsize=9)
        axes.set_yticks(range(len(timed)), [f"{row['variant']}: {row['adds']}" for row in timed], fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.45 * max(row["images_per_s"] for row in timed))
        axes.set(
            xlabel="images/s, and times published (least-most)\n"
            "grey: plain PyTorch; blue: fastarat; purple: another algorithm",
            title=title(timed[0]),
        )
        axes.spines[["top", "right"]].set_visible(False)


def _colour(variant: str) -> str:
    if variant.startswith("x-"):
        return COLOURS[3]
    return "#888888" if variant in PLAIN else COLOURS[0]


def _speed(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.1f}"
