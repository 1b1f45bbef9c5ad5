"""Result rows: one JSON line each, with what they were measured on and made from; and tables of them."""

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastarat.common.environment import environment
from fastarat.common.errors import UserError
from fastarat.common.files import append_line, write_atomically
from fastarat.config import Config, from_dict

Row = dict[str, Any]

RESULTS = Path(__file__).parents[1] / "results"


def base_row(benchmark: str, config: Config | dict[str, Any], dataset: str | None, *, device: str) -> dict[str, Any]:
    """The fields that every row has. `config`: a training's, or all settings of a benchmark that trains nothing."""
    facts = environment()
    names = ("gpu", "driver", "torch", "triton", "commit", "date", "machine", "processor", "threads")
    return {
        "benchmark": benchmark,
        "dataset": dataset,
        "device": device,
        **{name: facts[name] for name in names},
        "config": config if isinstance(config, dict) else asdict(config.resolved()),
    }


def write_row(path: Path | None, row: Row) -> None:
    """Append a row, on disk when this returns; it is a line of its own also after one that a kill cut off.

    Without a `path` rows go nowhere.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        _end_last_line(path)
        append_line(path, row)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other process of a suite write in this file meanwhile, where its disk knows locks."""
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_rows(path: Path | None, rows: Sequence[Row], *, instead_of: Sequence[Row] = ()) -> None:
    """Append rows, or put them, whole or not at all, in the place of `instead_of`, if those are a file's last."""
    before, last = _bytes(path) if path is not None and instead_of else b"", _lines(instead_of)
    if path is not None and before and before.endswith(last):
        write_atomically(path, lambda new: new.write_bytes(before.removesuffix(last) + _lines(rows)))
        return
    for row in rows:
        write_row(path, row)


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def read_rows(*paths: Path) -> Iterator[Row]:
    """All rows of these files, in order; a file that is not there has none, nor has a last line that was cut off.

    Raises `UserError` for any other line that is no JSON object, and for a file that cannot be read.
    """
    for path in paths:
        if path.exists():
            *lines, rest = _bytes(path).split(b"\n")
            for number, line in enumerate(lines, 1):
                if (row := _row(line)) is None:
                    raise UserError(f"{path}, line {number} is no JSON object: mend the line, or move the file away")
                yield row
            if (row := _row(rest)) is not None:
                yield row


def rows_from_here(benchmark: str, path: Path | None, base: Row) -> list[Row]:
    """A benchmark's committed rows and those in `path` that have the commit, GPU and device of `base`.

    Where the commit is unknown nobody knows what rows were made with: there are none. Raises `UserError` as `read_rows`
    does.
    """
    made_by = {name: base.get(name) for name in ("commit", "gpu", "device")}
    files = dict.fromkeys(filter(None, (RESULTS / f"{benchmark}.jsonl", path)))
    return [row for row in read_rows(*files) if has(row, made_by)] if made_by["commit"] else []


def has(row: Row, fields: Row, *, at_least: Mapping[str, float] | None = None, config: Config | None = None) -> bool:
    """Whether a row has these fields, these numbers or more, and is of a training by `config`.

    What a row does not name is None, of `at_least` 0.
    """
    return (
        all(row.get(name) == value for name, value in fields.items())
        and all(row.get(name, 0) >= number for name, number in (at_least or {}).items())
        and (config is None or from_dict(row["config"], "a result row").resolved() == config.resolved())
    )


def has_row(rows: Iterable[Row], fields: Row, **more: Any) -> bool:
    """Whether one of the rows has all that; `more`: see `has`."""
    return any(has(row, fields, **more) for row in rows)


def place(*rows: Row, commit: str | None = None) -> str:
    """What these were measured on. `commit`: what made them, if not those that the rows name."""
    first = rows[0]
    commit = commit or ", ".join(dict.fromkeys(str(row["commit"]) for row in rows))
    return f"{first['gpu'] or cpu(rows)}, torch {first['torch']}, commit {commit}"


def trained_by(sessions: Sequence[dict[str, Any]]) -> str:
    """The commits of a training's sessions, each once, in their order: a row's `trained_by`."""
    return ", ".join(dict.fromkeys(str(session["commit"]) for session in sessions))


def commits(rows: Iterable[Row]) -> str:
    """Every commit that trained for these rows, once."""
    return ", ".join(sorted({commit for row in rows for commit in row["trained_by"].split(", ")}))


def cpu(rows: Sequence[Row]) -> str:
    """The processors of these rows, if all of them name one, which old ones do not, and the numbers of threads."""
    names = sorted({row.get("processor") or "" for row in rows})
    threads = " or ".join(str(number) for number in sorted({row["threads"] for row in rows}))
    named = f" ({', '.join(names)})" if all(names) else ""
    return f"CPU{named}, {threads} thread{'' if threads == '1' else 's'}"


def counted(numbers: Iterable[int]) -> str:
    """How many, of one row or of several that may differ."""
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def warned(rows: Iterable[Row], name: Callable[[Row], str]) -> str:
    """What AutoAttack warned of, and in which rows, as sentences; empty if of nothing."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.get("warnings") or ():
            found.setdefault(warning.rstrip("."), []).append(f"{name(row)}, seed {row['seed']}")
    return " ".join(f"AutoAttack's warning of {'; '.join(whose)}: {warning}." for warning, whose in found.items())


def markdown(columns: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: move it away") from error


def _row(line: bytes) -> Row | None:
    """The object that a line holds; None if it holds none, or is no JSON in UTF-8."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _end_last_line(path: Path) -> None:
    """End the last line if it has no end: a whole row is kept, what a kill left of one is not."""
    content = _bytes(path) if path.exists() else b""
    rest = content.rpartition(b"\n")[2]
    if rest:
        with path.open("rb+") as file:
            if _row(rest) is None:
                file.truncate(len(content) - len(rest))
            else:
                file.seek(0, 2)
                file.write(b"\n")
