"""What a person sees: results on stdout, progress and notices on stderr.

On a terminal progress is a live bar with the time left; elsewhere one plain line when it is done.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Console(RichConsole):
    """A console that leaves a reader who has gone to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


# What goes into a file or a pipe is never cut at an imagined screen's edge.
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def notice(text: str) -> None:
    """Print one line to stderr: an automatic choice, a warning, where a file went."""
    stderr.print(text, markup=False)


def print_json(value: Any) -> None:
    """Print `value` as JSON to stdout, for a program to read."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to stdout; columns of numbers are aligned to the right."""
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        numbers = all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
        table.add_column(column, justify="right" if numbers and i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    stdout.print(table)


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show progress on stderr; yields `advance(amount)`. `total` None means unknown."""
    start = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)
    seconds = time.monotonic() - start
    if not stderr.is_terminal and seconds > 2:
        notice(f"{description}: done in {seconds:.0f} s")
