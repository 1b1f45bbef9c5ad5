"""Running a campaign's stages one after the other, each within its share of the time, each with a row of its own."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape

from bench.campaign.files import OutFolder, bring, carry, rows_in
from bench.campaign.stages import BUDGET, CampaignSetting, Row, Stage
from bench.common.processes import Ending, environment, run_in_time
from bench.common.rows import RESULTS, has, has_row, write_row
from bench.ladder.variants import NEEDS_GPU
from fastarat.common.console import notice, stderr
from fastarat.common.durations import duration
from fastarat.common.environment import commit
from fastarat.common.signals import number_of

State = Literal["done", "failed", "ended in time", "left out"]

SECONDS_BETWEEN_LINES = 30
LEFT_OUT = "budget:"
"""what begins the line in which a benchmark says that its budget left something out"""
FACTS = ("device", "gpu", "driver", "torch", "triton", "commit", "date", "machine", "processor", "threads")


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
    """Runs stages until `end` (of `time.monotonic`); less the time that ending the last one may take.

    Raises `UserError` if a file of rows cannot be read.
    """

    def __init__(self, setting: CampaignSetting, state: Path, end: float, *, out_folder: OutFolder):
        self.setting, self.state, self.end, self.out_folder = setting, state, end, out_folder
        left = end - time.monotonic()
        self.grace_s = min(15, left / 12)
        self.reserve_s = 4 / 3 * self.grace_s
        self.facts: Row = {**dict.fromkeys(FACTS), "device": setting.device, "commit": commit()}
        earlier = list(self._rows())  # a file that cannot be read is said before anything runs
        # Without a commit nobody knows what they were made with.
        self.ignored = [] if self.facts["commit"] else earlier
        self.interrupted = 0
        """the number of the signal that ends it"""
        self.logs = state / "logs"
        self.logs.mkdir(exist_ok=True)

    def run(self, stages: Sequence[Stage]) -> list[Result]:
        """The results in the order of `stages`. What failed in an earlier call has its turn after the others."""
        found = {stage.name: self._result(stage) for stage in stages if stage.is_of_call}
        # The first of them wrote what machine this is: this process never touches the GPU.
        for row in rows_in(self.setting.out):
            if row.get("benchmark") == "environment":
                self.facts = {name: row.get(name) for name in FACTS}
        others = [stage for stage in stages if not stage.is_of_call]
        found |= {stage.name: self._result(stage) for stage in sorted(others, key=self._has_failed)}
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
        stop_s, grace_s = limit_s - stage.grace, max(stage.grace, self.grace_s)
        command = [part.replace(BUDGET, f"{max(0.85 * stop_s - 5, 1):.0f}") for part in stage.command]
        try:
            with _progress(stage.name, self.end) as show:
                ending = run_in_time(command, log, stop_s, grace_s=grace_s, variables=self._variables(), watch=show)
        except KeyboardInterrupt as error:
            self.interrupted = number_of(error)
        except OSError as error:
            ending = Ending(127, False, 0, f"cannot start {error.filename}: {error.strerror}")
        result = self._judge(stage, ending, limit_s, seconds=time.monotonic() - started)
        self._write(stage, result, ending, limit_s=limit_s)
        notice(f"{stage.name}: {result.state} after {duration(result.seconds)} · {result.headline}")
        return result

    def _judge(self, stage: Stage, ending: Ending | None, limit_s: float, *, seconds: float) -> Result:
        """What the ending of a stage's process means; None: this one was interrupted."""
        if ending is None:
            return Result(stage.name, "ended in time", seconds, "interrupted", is_open=True)
        line, rows = ending.last_line, self._covered(stage, self._rows())
        has_all = _has_all(stage, rows)
        if stage.grace and has_all and (ending.was_stopped or not ending.code):
            return Result(stage.name, "done", seconds, _headline(stage, rows, line))
        if ending.was_stopped:
            if limit_s < stage.seconds or stage.goes_on:
                return Result(stage.name, "ended in time", seconds, line, is_open=True)
            return Result(stage.name, "failed", seconds, f"did not end within {limit_s:.0f} s: {line}")
        if ending.code:
            how = f"signal {-ending.code}" if ending.code < 0 else f"code {ending.code}"
            return Result(stage.name, "failed", seconds, f"{how}: {line}")
        headline = _headline(stage, rows, line)
        if any(text.startswith(LEFT_OUT) for text in ending.output.splitlines()):
            return Result(stage.name, "ended in time", seconds, headline, is_open=True)
        if not has_all:
            return Result(stage.name, "failed", seconds, f"not all of its rows are there and right: {line}")
        return Result(stage.name, "done", seconds, headline)

    def _write(self, stage: Stage, result: Result, ending: Ending | None, *, limit_s: float) -> None:
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
        self.out_folder.tidy()

    def _left(self) -> float:
        return self.end - self.reserve_s - time.monotonic()

    def _variables(self) -> dict[str, str]:
        caches = self.state / "compiled"
        return environment(
            PYTHONUNBUFFERED="1",
            TORCHINDUCTOR_CACHE_DIR=str(caches / "inductor"),
            TRITON_CACHE_DIR=str(caches / "triton"),
        )

    def _config(self, stage: Stage) -> Row:
        data = self.setting.data and Path(self.setting.data).name
        return {"stage": stage.name, "smoke": self.setting.smoke, "data": data}

    def _rows(self) -> Iterator[Row]:
        """What is committed, then what this call and earlier ones gave."""
        yield from rows_in(RESULTS)
        yield from rows_in(self.setting.out)

    def _is_mine(self, row: Row) -> bool:
        """Whether this commit made it, on this machine."""
        mine = {name: self.facts[name] for name in ("commit", "gpu", "device")}
        return has(row, mine) and row not in self.ignored

    def _notes(self, stage: Stage) -> list[Row]:
        """The stage's own rows, from all calls."""
        mine = {"benchmark": "campaign", "config": self._config(stage)}
        return [row for row in self._rows() if has(row, mine) and self._is_mine(row)]

    def _has_failed(self, stage: Stage) -> bool:
        notes = self._notes(stage)
        return bool(notes) and notes[-1]["state"] == "failed"

    def _done(self, stage: Stage) -> Result | None:
        """How a stage ended that needs no run: it was done in an earlier call, or all its rows are committed."""
        done = [row for row in self._notes(stage) if row["state"] == "done"]
        if done:
            return Result(stage.name, "done", done[-1]["seconds"], done[-1]["headline"])
        committed = self._covered(stage, rows_in(RESULTS))
        if stage.covers and _has_all(stage, committed):
            return Result(stage.name, "done", 0, _headline(stage, committed, "committed before"))
        return None

    def _covered(self, stage: Stage, rows: Iterable[Row]) -> list[Row]:
        """Those of the rows that the stage was to make, and that are right."""
        mine = [row for row in rows if _is_right(row) and self._is_mine(row)]
        return [row for row in mine if any(has(row, fields) for fields in stage.covers)]


def _headline(stage: Stage, rows: Sequence[Row], printed: str) -> str:
    """What the stage's rows say; where they say nothing, what it printed last."""
    return (stage.headline(rows) if stage.headline and rows else "") or printed


def _is_right(row: Row) -> bool:
    """Whether it says something of speed: a ladder has rows of variants without one too."""
    if row.get("benchmark") == "throughput":
        return row.get("error") == NEEDS_GPU or (bool(row.get("correct")) and row.get("images_per_s") is not None)
    return bool(row.get("correct"))


def _has_all(stage: Stage, rows: Sequence[Row]) -> bool:
    """Whether there is a row of each kind that the stage makes."""
    return all(has_row(rows, fields) for fields in stage.covers)


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
