"""What the rows of soaks are shown as: the counts of each run on the terminal, and all in a sentence."""

from collections.abc import Sequence
from typing import Any

from bench.common.rows import Row, place
from fastarat.common.console import print_table


def print_tables(rows: Sequence[Row]) -> None:
    """The counts, to stdout."""
    names = ("kills", "cut_off", "bits_lost", "seconds")
    print_table("SIGKILL at random moments", [*names], [[str(row[name]) for name in names] for row in rows])


def headline(rows: Sequence[Row]) -> str:
    """In a line: kills, and bits lost."""
    sums: dict[str, Any] = {name: sum(row[name] for row in rows) for name in ("runs", "kills", "cut_off", "bits_lost")}
    runs = f"{sums['runs']} run{'s' * (sums['runs'] > 1)}"
    kills = f"{sums['kills']:,} kills of {runs}, {sums['cut_off']} while a file was written"
    return f"{kills}: {sums['bits_lost']} bits lost"


def as_markdown(rows: Sequence[Row]) -> str:
    """All soaks in a sentence; empty for no rows."""
    return f"{headline(rows)} ({place(*rows)}).\n" if rows else ""
