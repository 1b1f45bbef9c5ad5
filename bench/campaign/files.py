"""What a campaign keeps and gives: rows go over from call to call, and what is given is few, small, flat files."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.common.rows import read_rows
from fastarat.common.console import notice

MOST_FILES, MOST_BYTES = 8, 16_000_000


def rows_in(folder: Path) -> Iterator[dict[str, Any]]:
    """All rows of a folder's .jsonl files. Raises `UserError` as `read_rows` does."""
    return read_rows(*sorted(folder.glob("*.jsonl")))


def carry(source: Path, target: Path, commit: str | None) -> None:
    """Add to `target`'s files of rows those of `source` that were made by `commit` and are not there yet.

    Rows of an unknown commit stay where they are: they count for the call alone that made them.
    """
    for path in sorted(source.glob("*.jsonl")):
        there = [json.dumps(row) for row in read_rows(target / path.name)]
        known = set(there)
        mine = (json.dumps(row) for row in read_rows(path) if commit and row.get("commit") == commit)
        new = [line for line in mine if line not in known]
        if new:
            (target / path.name).write_text("".join(f"{line}\n" for line in [*there, *new]))


def bring(pattern: str, source: Path, out: Path) -> None:
    """Copy a stage's files to `out`, if they are small enough; say so if not."""
    for path in sorted(source.glob(pattern)):
        if path.stat().st_size > MOST_BYTES:
            notice(f"{path.name} is {path.stat().st_size / 1e6:.0f} MB: it stays at {path}")
        else:
            shutil.copy(path, out / path.name)


class OutFolder:
    """The folder --out. What lay there before the campaign is left alone; what came since is kept within the limits."""

    def __init__(self, out: Path, aside: Path):
        self.out, self.aside = out, aside
        self.foreign = {path for path in out.iterdir() if path.suffix != ".jsonl"}

    def tidy(self) -> None:
        """Put aside folders, files above `MOST_BYTES`, and all but `MOST_FILES` files: first rows, then the oldest."""
        mine = [path for path in self.out.iterdir() if path not in self.foreign]
        fitting = [path for path in mine if path.is_file() and path.stat().st_size <= MOST_BYTES]
        fitting.sort(key=lambda path: (path.suffix != ".jsonl", path.stat().st_mtime))
        for path in set(mine) - set(fitting[:MOST_FILES]):
            self.aside.mkdir(parents=True, exist_ok=True)
            target = self.aside / path.name
            if target.is_dir():
                shutil.rmtree(target)
            shutil.move(path, target)
            notice(f"{path.name} is too much for --out ({MOST_FILES} files of 16 MB): moved to {target}")
