"""What a person sees: results on stdout, progress and notices on stderr, and what a message tells them to do.

On a terminal progress is a live bar with the time left; elsewhere a plain line now and then, and one when it is done.
Names and texts are shown as they are, without markup; what would move a terminal's cursor or colour it is shown as an
escape sequence.
"""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fastarat.common.durations import Seldom, duration
from fastarat.common.errors import UserError

MOST_CHARACTERS = 1000
"""of a message; the middle of a longer one is left out"""
MOST_OF_A_LINE = 250
"""characters of a problem among several in a message"""

# Control characters but for tab and newline, other line ends, what turns the direction of writing, lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """`text` with what is no visible character as Python writes it: `\\x1b` for an escape."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: object, most: int = MOST_CHARACTERS) -> str:
    """A message as one line of no more than `most` characters; its beginning and its end, where the fix is, stay."""
    line = printable(" ".join(str(text).split()))
    if len(line) <= most:
        return line
    begin = (most - 3) * 2 // 3
    return f"{line[:begin]} … {line[len(line) - (most - 3 - begin) :]}"


class Console(RichConsole):
    """A console that shows every text as it is, and leaves a reader who has gone to whoever runs the command."""

    def __init__(self, **options: Any):
        super().__init__(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Only what is visible of `text`."""
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """rich's own method, which ends the program; this raises `BrokenPipeError`."""
        raise BrokenPipeError


class Messages(Console):
    """Standard error: whatever becomes of it, the work goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print if that can be done."""
        if getattr(sys.stderr, "closed", False):
            return
        try:
            super().print(*objects, **options)
        except OSError:  # it goes to a file, and the disk is full
            forget(sys.stderr)

    def on_broken_pipe(self) -> None:
        """The reader has gone: nobody needs what follows."""
        forget(sys.stderr)


def forget(stream: IO[str] | None) -> None:
    """Let what goes to `stream` from now on go nowhere, with what is left in its buffer."""
    with suppress(OSError, ValueError):  # it is no file, or closed
        null = os.open(os.devnull, os.O_WRONLY)
        if stream is not None:
            os.dup2(null, stream.fileno())
        os.close(null)


# What goes into a file or a pipe is never cut at an imagined screen's edge.
stdout = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 200)
stderr = Messages(stderr=True)


def notice(text: str) -> None:
    """Print one line to stderr: an automatic choice, a warning, where a file went."""
    stderr.print(one_line(text))


def print_json(value: Any) -> None:
    """Print `value` as JSON to stdout, for a program to read."""
    print(json.dumps(value, indent=2), flush=True)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to stdout; columns of numbers are aligned to the right."""
    table = Table(title=one_line(title) or None, title_justify="left")
    for i, column in enumerate(columns):
        numbers = all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
        table.add_column(column, justify="right" if numbers and i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(one_line, row))
    stdout.print(table)


class _Pace:
    """How fast work goes, of the last half of its time or more: what goes on takes up what was done before in no time,
    and the first of it may be slower than the rest."""

    def __init__(self, total: float | None):
        self.total, self.start, self.done = total, time.monotonic(), 0.0
        self.since = self.latest = (self.start, 0.0)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.start

    def advance(self, amount: float) -> None:
        """So much more is done."""
        self.done += amount
        if self.seconds >= 2 * (self.latest[0] - self.start):
            self.since, self.latest = self.latest, (time.monotonic(), self.done)

    @property
    def left(self) -> str:
        """The time left, in words; '' where it is not known."""
        begun, before = self.since
        if not self.total or self.done <= before:
            return ""
        each = (time.monotonic() - begun) / (self.done - before)
        return f"{duration(max(each * (self.total - self.done), 0.0))} left"

    @property
    def so_far(self) -> str:
        """How far it is, in words."""
        if not (self.total and self.left):
            return f"{duration(self.seconds)} so far"
        return f"{100 * self.done / self.total:.0f} %, {self.left}"


@contextmanager
def progress(description: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Show progress on stderr; yields `advance(amount)`. `total` None means unknown."""
    pace, seldom, description = _Pace(total), Seldom(), one_line(description)

    def advance(amount: float) -> None:
        pace.advance(amount)
        bar.update(task, advance=amount, left=pace.left)
        if not stderr.is_terminal and seldom.is_due():
            notice(f"{description}: {pace.so_far}")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task(description, total=total, left="")
        yield advance
    if not stderr.is_terminal and pace.seconds > 2:
        notice(f"{description}: done in {pace.seconds:.0f} s")


def command(*words: object) -> str:
    """`fastarat` with these words, each quoted for a shell where needed, between marks that do not stand in it; a path
    is never taken for a flag."""
    named = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    text = f"fastarat {shlex.join(named)}"
    mark = next((mark for mark in "'\"`" if mark not in text), " ")
    return f"{mark}{text}{mark}"


def require_none(source: Path | str, problems: list[str], fix: str = "") -> None:
    """Raise one `UserError` naming the first few of `problems`, if there are any; `fix` ends its line."""
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        all_of_them = f"; {command('data', 'check', source)} lists every one" if more else ""
        first = "; ".join(one_line(line, MOST_OF_A_LINE) for line in problems[:3])  # names may be anything
        raise UserError(f"{source}: {first}{more}{all_of_them}{fix and f'; {fix}'}")
