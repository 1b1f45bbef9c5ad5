"""What the loader benchmark shows of its rows: a table a kind of images, on the terminal and as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from bench.common.rows import Row, markdown, place
from fastarat.common.console import print_table, stdout
from fastarat.common.turns import ratio_text

Key = tuple[Any, ...]
LEGEND = (
    "Each loader decodes into uint8 in the host's memory, in fresh processes, in turns; x plain: median (least-most) "
    "of turns against PIL in worker processes on the same stored images, in images per second of CPU time and in "
    "images/s. First epoch: from starting the loader, its files not in memory. Waiting: the share of fastarat's own "
    "training step in which it waits for its next batch. Off by: mean difference to PIL's pixels in grey levels, "
    "decoded and resized."
)
COLUMNS = (
    *("loader", "stored", "workers", "first epoch, images/s", "s to its first batch", "images/s"),
    *("CPU-s per 1,000", "images per CPU-s, x plain", "images/s, x plain", "waiting, %", "off by"),
)


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """The newest rows of each (data set, size, GPU, commit), the newest group first."""
    found: dict[Key, dict[Key, Row]] = {}
    for row in sorted(rows, key=lambda row: row["date"], reverse=True):
        key = (row["dataset"], row["size"], row["gpu"], row["commit"])
        found.setdefault(key, {}).setdefault((*_case(row), row["stage"]), row)
    return [list(group.values()) for group in found.values()]


def _case(row: Row) -> Key:
    return row["workers"], row["stored"], row["loader"], row["decode"]


def title(row: Row) -> str:
    """What a group measured."""
    how = "random resized crops" if row["crop"] == "resized" else "whole images"
    return f"{row['dataset']} at {row['size']}x{row['size']}, {how}"


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells: a line a loader and number of workers."""
    lines: dict[Key, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(_case(row), {})[row["stage"]] = row
    return list(COLUMNS), [_cells(lines[case]) for case in sorted(lines)]


def _cells(stages: dict[str, Row]) -> list[str]:
    any_row = next(iter(stages.values()))
    first, steady, training = (stages.get(name, {}) for name in ("first", "steady", "training"))
    loader = any_row["loader"] + (", GPU" if any_row["decode"] == "gpu" else "")
    workers = "-" if any_row["loader"] == "resident" else str(any_row["workers"])
    ratios = steady.get("ratios") or {}
    if not any_row["correct"]:
        wrong = f"no speed: {any_row['error'].partition(':')[0]}"
        return [loader, any_row["stored"], workers, wrong, *"-" * 6, _difference(any_row)]
    return [
        loader,
        any_row["stored"],
        workers,
        _number(first.get("images_per_s"), 0),
        _number(first.get("first_batch_s"), 1),
        _number(steady.get("images_per_s"), 0),
        _number(steady.get("cpu_s_per_1000"), 3),
        ratio_text(ratios.get("images_per_cpu_s")),
        ratio_text(ratios.get("images_per_s")),
        _number(training.get("waiting_share"), 2, 100),
        _difference(any_row),
    ]


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "-" if value is None else f"{factor * value:,.{digits}f}"


def _difference(row: Row) -> str:
    found = row["differences"]
    if found.get("exact") is not None:
        return f"{found['exact']:.0f}"
    means = [found[name] for name in ("kept", "resized") if found.get(name) is not None]
    return ", ".join(f"{mean:.2f}" for mean in means) or "-"


def caption(rows: list[Row]) -> str:
    """What the group was measured on, and the training that was fed, with its speed."""
    fed, what = [row for row in rows if row["stage"] == "training" and row["correct"]], [title(rows[0])]
    if fed:
        first, speeds = fed[0], [row["images_per_s"] for row in fed]
        what.append(f"fed training: {first['model']}, batch {first['batch']}, {first['attack_steps']} attack steps")
        what[-1] += f", {min(speeds):,.1f} to {max(speeds):,.1f} images/s"
    return "; ".join([*what, place(*rows)])


def as_markdown(rows: Iterable[Row]) -> str:
    """Every comparison of the loaders, the newest first; empty for no rows."""
    parts = []
    for group in groups(rows):
        parts += [f"**{title(group[0])}**\n", markdown(*table(group)), f"{caption(group)}.\n"]
    return "\n".join([*parts, f"{LEGEND}\n"]) if parts else ""


def print_tables(rows: list[Row]) -> None:
    """A table for each kind of images, and what is wrong under it."""
    for group in groups(rows):
        print_table(caption(group), *table(group))
        for problem in dict.fromkeys(f"{row['loader']}: {row['error']}" for row in group if row["error"]):
            stdout.print(problem, markup=False)


def headline(rows: Sequence[Row]) -> str:
    """In a line: the share of a training step that each loader lets it wait."""
    shares = {row["loader"]: row["waiting_share"] for row in rows if row["stage"] == "training" and row["correct"]}
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares.items()]
    return f"waiting for data: {', '.join(parts)}" if parts else ""
