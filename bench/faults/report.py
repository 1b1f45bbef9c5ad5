"""What the rows of faults are shown as: a line a fault, on the terminal and as Markdown."""

from collections.abc import Sequence
from statistics import median

from bench.common.rows import Row, markdown, place
from bench.faults.stories import STORIES
from fastarat.common.console import print_table

COLUMNS = ("what fails", "the run", "as it has to", "seconds: median (most)", "processes left", "bits that differ")


def key_of(row: Row) -> tuple[str, int, str, int, int]:
    """What a newer row of the same replaces it by: the fault, the seed, and where it happened in which story.

    The oldest rows are of single faults, of no story.
    """
    return row["case"], row["config"]["seed"], row["story"], row["try"], row["place"]


def counted(rows: Sequence[Row]) -> list[Row]:
    """The rows that count: of a try that was made again the newest."""
    return list({key_of(row): row for row in rows}.values())


def table(rows: Sequence[Row]) -> list[list[str]]:
    """A line a fault, of all its tries that count."""
    found = counted(rows)
    cases = dict.fromkeys(fault.name for story in STORIES for fault in story.faults)
    return [_cells(tries) for case in cases if (tries := [row for row in found if row["case"] == case])]


def _cells(tries: Sequence[Row]) -> list[str]:
    seconds = [row["seconds"] for row in tries if row["seconds"] is not None]
    bits = [row["bits"] for row in tries if row["bits"] is not None]
    return [
        tries[0]["case"],
        tries[-1]["outcome"],
        f"{sum(row['correct'] for row in tries)} of {len(tries)}",
        f"{median(seconds):.0f} ({max(seconds):.0f})" if seconds else "-",
        str(max(row["left"] for row in tries)),
        str(max(bits)) if bits else "-",
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """What became of a run for each fault; empty for no rows."""
    return f"{markdown(COLUMNS, table(rows))}\n{place(*counted(rows))}.\n" if rows else ""


def print_tables(rows: Sequence[Row]) -> None:
    """The table, to stdout."""
    print_table("faults", [*COLUMNS], table(rows))


def headline(rows: Sequence[Row]) -> str:
    """In a line: how many tries ended as they have to."""
    return f"{sum(row['correct'] for row in rows)} of {len(rows)} tries as it has to be"
