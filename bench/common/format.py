"""How every benchmark writes a row's figures: ratios, the place of a measurement, Markdown."""

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def place(row: Row) -> str:
    """What it was measured on."""
    where = row["gpu"] or f"CPU, {row['threads']} thread{'' if row['threads'] == 1 else 's'}"
    return f"{where}, torch {row['torch']}, commit {row['commit']}"


def ratio(found: dict[str, float] | None) -> str:
    """A ratio with the least and the most of its turns; unresolved if they leave open which of the two is faster."""
    if found is None:
        return "-"
    low, median, high = (f"{found[name]:.2f}" for name in ("low", "median", "high"))
    if found["low"] == found["high"] == 1:
        return "1"
    return f"unresolved ({low}-{high})" if found["low"] <= 1 <= found["high"] else f"{median} ({low}-{high})"


def markdown(columns: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """A table."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
