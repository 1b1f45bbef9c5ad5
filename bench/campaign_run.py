"""Running a campaign's stages one after the other, each within its share of the time, each with a row of its own."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape

from bench.campaign_files import Given, bring, carry, rows_in
from bench.campaign_stages import BUDGET, Row, Setting, Stage
from bench.processes import Ending, environment, run_in_time
from bench.rows import RESULTS, write_row
from fastarat.console import notice, stderr
from fastarat.engine.display import duration
from fastarat.record import commit

State = Literal["done", "failed", "ended in time", "left out"]

SECONDS_BETWEEN_LINES = 30
LEFT_OUT = "budget:"
"""what begins the line in which a benchmark says that its budget left something out"""
FACTS = ("device", "gpu", "driver", "torch", "triton", "commit", "date", "machine", "threads")


@dataclass(frozen=True)
class Result:
    """How a stage went."""

    stage: str
    state: State
    seconds: float
    headline: str
    is_open: bool = False
    """whether a next call goes on with it"""


class Campaign:
    """Runs stages until `end` (of `time.monotonic`); less the time that ending the last one may take."""

    def __init__(self, setting: Setting, state: Path, end: float, given: Given):
        self.setting, self.state, self.end, self.given = setting, state, end, given
        left = end - time.monotonic()
        self.grace_s = min(15, left / 12)
        self.reserve_s = 4 / 3 * self.grace_s
        self.facts: Row = {**dict.fromkeys(FACTS), "device": setting.device, "commit": commit()}
        self.interrupted = False
        self.logs = state / "logs"
        self.logs.mkdir(exist_ok=True)

    def run(self, stages: Sequence[Stage]) -> list[Result]:
        """The results in the order of `stages`. What failed in an earlier call has its turn after the others."""
        found: dict[str, Result] = {}
        always = [stage for stage in stages if stage.is_of_call]
        for stage in always:
            found[stage.name] = self._result(stage)
        self._learn_facts()
        others = [stage for stage in stages if not stage.is_of_call]
        for stage in sorted(others, key=self._has_failed):
            found[stage.name] = self._result(stage)
        return [found[stage.name] for stage in stages]

    def _result(self, stage: Stage) -> Result:
        """The stage's result, run now if need be."""
        earlier = None if stage.is_of_call else self._done(stage)
        if earlier:
            self._bring(stage)
            return earlier
        if stage.lacks:
            return Result(stage.name, "left out", 0, stage.lacks)
        if self.interrupted:
            return Result(stage.name, "left out", 0, "interrupted", is_open=True)
        limit_s = min(stage.seconds, self._left())
        if limit_s <= stage.least:
            state = "failed" if self._has_failed(stage) else "left out"
            return Result(stage.name, state, 0, f"no time left: it wants {stage.least:g} s", is_open=True)
        notice(f"{duration(self._left())} left · {stage.name}: at most {duration(limit_s)}")
        return self._run(stage, limit_s)

    def _run(self, stage: Stage, limit_s: float) -> Result:
        log = self.logs / f"{re.sub(r'[^a-z0-9]+', '-', stage.name)}.log"
        started = time.monotonic()
        ending = None
        command = [part.replace(BUDGET, f"{max(0.85 * limit_s - 5, 1):.0f}") for part in stage.command]
        try:
            with _progress(stage.name, self.end) as show:
                ending = run_in_time(command, log, limit_s, self.grace_s, self._variables(), show)
        except KeyboardInterrupt:
            self.interrupted = True
        except OSError as e:
            ending = Ending(127, False, 0, f"cannot start {e.filename}: {e.strerror}")
        result = self._judge(stage, ending, limit_s, time.monotonic() - started)
        self._write(stage, result, ending, limit_s)
        notice(f"{stage.name}: {result.state} after {duration(result.seconds)} · {result.headline}")
        return result

    def _judge(self, stage: Stage, ending: Ending | None, limit_s: float, seconds: float) -> Result:
        """What the ending of a stage's process means; None: this one was interrupted."""
        if ending is None:
            return Result(stage.name, "ended in time", seconds, "interrupted", is_open=True)
        line = ending.last_line
        if ending.was_stopped:
            if limit_s < stage.seconds or stage.goes_on:
                return Result(stage.name, "ended in time", seconds, line, is_open=True)
            return Result(stage.name, "failed", seconds, f"did not end within {limit_s:.0f} s: {line}")
        if ending.code:
            how = f"signal {-ending.code}" if ending.code < 0 else f"code {ending.code}"
            return Result(stage.name, "failed", seconds, f"{how}: {line}")
        is_whole = not any(text.startswith(LEFT_OUT) for text in ending.output.splitlines())
        headline = stage.headline(self._covered(stage, rows_in(self.setting.out)), ending.output)
        return Result(stage.name, "done" if is_whole else "ended in time", seconds, headline, not is_whole)

    def _write(self, stage: Stage, result: Result, ending: Ending | None, limit_s: float) -> None:
        """The stage's own row; then what --state keeps and what --out gets."""
        row = {
            "benchmark": "campaign",
            "dataset": None,
            **self.facts,
            "config": self._config(stage),
            "correct": result.state != "failed",
            "stage": stage.name,
            "state": result.state,
            "seconds": round(result.seconds, 1),
            "limit_s": round(limit_s, 1),
            "code": ending and ending.code,
            "headline": result.headline,
            "last_line": ending.last_line if ending else "",
        }
        write_row(self.setting.out / "campaign.jsonl", row)
        carry(self.setting.out, self.state / "rows", self.facts["commit"])
        self._bring(stage)

    def _bring(self, stage: Stage) -> None:
        """Give a stage's files, and keep what is given within its limits."""
        for pattern in stage.brings:
            bring(pattern, self.setting.runs, self.setting.out)
        self.given.tidy()

    def _left(self) -> float:
        return self.end - self.reserve_s - time.monotonic()

    def _variables(self) -> dict[str, str]:
        caches = self.state / "compiled"
        return environment(
            PYTHONUNBUFFERED="1",
            TORCHINDUCTOR_CACHE_DIR=str(caches / "inductor"),
            TRITON_CACHE_DIR=str(caches / "triton"),
        )

    def _learn_facts(self) -> None:
        """The machine's, from the row that the first stage wrote: this process never touches the GPU."""
        rows = [row for row in rows_in(self.setting.out) if row.get("benchmark") == "environment"]
        if rows:
            self.facts = {name: rows[-1][name] for name in FACTS}

    def _config(self, stage: Stage) -> Row:
        data = self.setting.data and Path(self.setting.data).name
        return {"stage": stage.name, "smoke": self.setting.smoke, "data": data}

    def _of_this_machine(self, row: Row) -> bool:
        return all(row.get(name) == self.facts[name] for name in ("commit", "gpu", "device"))

    def _notes(self, stage: Stage) -> list[Row]:
        """The stage's own rows, from all calls."""
        rows = [*rows_in(RESULTS), *rows_in(self.setting.out)]
        mine = [row for row in rows if row.get("benchmark") == "campaign" and row["config"] == self._config(stage)]
        return [row for row in mine if self._of_this_machine(row)]

    def _has_failed(self, stage: Stage) -> bool:
        notes = self._notes(stage)
        return bool(notes) and notes[-1]["state"] == "failed"

    def _done(self, stage: Stage) -> Result | None:
        """How a stage ended that needs no run: it was done in an earlier call, or all its rows are committed."""
        done = [row for row in self._notes(stage) if row["state"] == "done"]
        if done:
            return Result(stage.name, "done", done[-1]["seconds"], done[-1]["headline"])
        committed = self._covered(stage, rows_in(RESULTS))
        if stage.covers and all(any(_has(row, fields) for row in committed) for fields in stage.covers):
            return Result(stage.name, "done", 0, stage.headline(committed, "committed before"))
        return None

    def _covered(self, stage: Stage, rows: Iterable[Row]) -> list[Row]:
        mine = [row for row in rows if self._of_this_machine(row)]
        return [row for row in mine if any(_has(row, fields) for fields in stage.covers)]


def _has(row: Row, fields: Row) -> bool:
    return all(row.get(name) == value for name, value in fields.items())


@contextmanager
def _progress(name: str, end: float) -> Iterator[Callable[[str], None]]:
    """Show the time left, how long a stage has run and what it said last: live on a terminal, else now and then."""
    started = last_shown = time.monotonic()

    def show(line: str) -> None:
        nonlocal last_shown
        now = time.monotonic()
        text = f"{duration(max(end - now, 0))} left · {name}, {duration(now - started)} · {line[:120]}"
        status.update(escape(text))
        if not stderr.is_terminal and now - last_shown >= SECONDS_BETWEEN_LINES:
            notice(text)
            last_shown = now

    with stderr.status(name) as status:
        yield show
