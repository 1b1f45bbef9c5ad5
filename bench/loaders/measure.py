"""Loaders checked, then timed in turns, each time in a fresh process; and the rows that this gives."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.common.processes import Failed, OutOfTime, environment, result_of
from bench.common.rows import Row
from bench.loaders.cases import BASE, LoaderCase
from fastarat.common.console import notice
from fastarat.common.turns import ratio_of, take_turns

Result = dict[str, Any]

MEASURED = ("images_per_s", "cpu_s_per_1000", "first_batch_s", "waiting_share", "ms_a_step")
FACTS = ("model", "batch", "attack_steps")
PROGRAM = "bench.loaders.in_a_process"
_LIMIT_S = 900
"""of one process: nothing that works takes as long"""


@dataclass(frozen=True)
class LoaderEffort:
    """How long is measured."""

    repeats: int
    """turns, in each of which every loader runs"""
    seconds: float
    """of steady epochs, and of training, in each"""
    deadline: float
    """of time.monotonic()"""


@dataclass
class Measured:
    """A case on its way."""

    case: LoaderCase
    differences: Result = field(default_factory=dict)
    problem: str | None = None
    turns: dict[str, list[Result]] = field(default_factory=dict)
    """stage → what each turn gave"""

    def fail(self, problem: str) -> None:
        """No speed for this one."""
        notice(f"{self.case.title}: {problem}")
        self.problem = problem
        self.turns.clear()


def measure(
    cases: Sequence[LoaderCase], cache: Path, effort: LoaderEffort, *, advance: Callable[[float], None]
) -> list[Measured]:
    """Check every loader, then take turns until the effort is spent. `cache`: where children keep what they decode."""
    processes = Processes(cache, effort)
    loaders = [Measured(case) for case in cases]
    try:
        _check(loaders, processes)
        for loader in take_turns(loaders, effort.repeats):
            if loader.problem is None:
                _measure(loader, processes)
            advance(1 / effort.repeats / len(loaders))
    except OutOfTime:
        notice("budget: not all turns were taken")
    return loaders


class Processes:
    """Starts `PROGRAM`."""

    def __init__(self, cache: Path, effort: LoaderEffort):
        # What is decoded or checked on the way is of no use later.
        self.variables = environment(FASTARAT_DATA=str(cache))
        self.effort = effort

    def run(self, task: str, case: LoaderCase) -> Result:
        """The result of a task. Raises `Failed`, and `OutOfTime`."""
        arguments = ["-m", PROGRAM, task, json.dumps(asdict(case)), repr(self.effort.seconds)]
        return result_of(arguments, self.variables, self.effort.deadline, limit_s=_LIMIT_S)


def _check(loaders: list[Measured], processes: Processes) -> None:
    """Compare every loader's pixels with PIL's, with the most workers that it is to have."""
    found: dict[tuple[str, ...], Result] = {}
    for loader in sorted(loaders, key=lambda loader: -loader.case.workers):
        case = loader.case
        key = (case.loader, case.path, case.decode)
        if key not in found:
            try:
                found[key] = processes.run("check", case)
            except Failed as error:
                found[key] = {"problem": str(error), "differences": {}}
        loader.differences = found[key]["differences"]
        if problem := found[key]["problem"]:
            loader.fail(problem)


def _measure(loader: Measured, processes: Processes) -> None:
    """One turn of one loader."""
    try:
        found = processes.run("speed", loader.case)
        if loader.case.recipe:
            found["training"] = processes.run("training", loader.case)
    except Failed as error:
        loader.fail(str(error))
        return
    for stage, result in found.items():
        loader.turns.setdefault(stage, []).append(result)


def rows_of(loaders: Sequence[Measured], base: Row) -> list[Row]:
    """A row for each loader and stage that was measured or is wrong."""
    rows = []
    for loader in loaders:
        for stage in loader.case.stages:
            turns = loader.turns.get(stage, [])
            if loader.problem or len(turns) > 1:  # one turn has no spread
                rows.append(_row(loader, stage, turns, loaders=loaders, base=base))
    return rows


def _row(loader: Measured, stage: str, turns: list[Result], *, loaders: Sequence[Measured], base: Row) -> Row:
    row = {
        **base,
        **loader.case.key,
        "stage": stage,
        "crop": loader.case.crop,
        "batch": loader.case.batch,
        "correct": loader.problem is None,
        "error": loader.problem,
        "differences": loader.differences,
        "turns": len(turns),
        **{name: _median(turns, name) for name in MEASURED},
        **{name: turns[0][name] for name in FACTS if turns and name in turns[0]},
        "ratios": {},
    }
    against = _base_of(loader, loaders)
    if against and turns and against is not loader:
        row["ratios"] = _ratios(turns, against.turns.get(stage, []))
    return row


def _median(turns: list[Result], name: str) -> float | None:
    values = [turn[name] for turn in turns if name in turn]
    return float(f"{median(values):.5g}") if values else None


def _base_of(loader: Measured, loaders: Sequence[Measured]) -> Measured | None:
    """The plain loader on the same stored images, with as many workers."""
    wanted = (BASE, loader.case.stored, loader.case.workers)
    return next((e for e in loaders if (e.case.loader, e.case.stored, e.case.workers) == wanted), None)


def _ratios(turns: list[Result], base: list[Result]) -> Row:
    """Turn by turn: images/s, and images per second of CPU time, over the base's."""
    if not base:
        return {}
    speeds, used = ([[turn[n] for turn in each] for each in (turns, base)] for n in ("images_per_s", "cpu_s_per_1000"))
    found = {"images_per_s": ratio_of(*speeds)}
    # A process that ends is counted from then on in ticks, rounded down: a very short turn may have nothing left.
    if all(seconds > 0 for pair in zip(*used, strict=False) for seconds in pair):
        found["images_per_cpu_s"] = ratio_of(*reversed(used))
    return {name: {which: round(value, 4) for which, value in ratio.items()} for name, ratio in found.items()}
