"""`fastarat watch RUN`: a training followed from another terminal."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastarat.commands.parsing import Printed, parse
from fastarat.common.console import command, notice, one_line, print_json, stdout
from fastarat.common.durations import duration
from fastarat.common.errors import UserError
from fastarat.common.locks import is_locked

if TYPE_CHECKING:
    from fastarat.runs.run import Run

SECONDS = 1.0
"""between two looks at the run's files"""
FEW = 5
"""the newest epochs: the time left is told by them, and `--once` shows no others"""


@dataclass(frozen=True)
class WatchArguments(Printed):
    """Follow a training from another terminal: a line an epoch, how far it is, and the time left.

    Ends when the training does. It reads files alone, on whichever machine sees them.
    For example: fastarat watch runs/digits-arat
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """a run's directory"""
    once: bool = False
    """say how it stands now by its newest epochs, and end"""


def run(args: list[str]) -> int:
    """Print what there is, then each epoch as it comes; with `--json` how it stands, once."""
    arguments = parse(WatchArguments, args, "fastarat watch")
    from fastarat.runs.run import Run

    watched = Run(arguments.run)
    watched.config()
    if arguments.json:
        print_json(standing(watched, _lines(watched, [])))
        return 0
    for line in followed(watched, once=arguments.once):
        stdout.print(line)
    return 0


def followed(watched: "Run", *, once: bool, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """The lines to print, as they come, until nobody trains in the run any more."""
    told, problems = -1, []
    while True:
        is_trained = is_locked(watched.lock_file)  # before the lines: who ends in between has written all
        lines = _lines(watched, problems)
        now = standing(watched, lines)
        goes_on = not now["is_finished"] if is_trained is None else is_trained
        there = lines or []
        for line in there[-FEW:] if once else there[max(told, 0) :]:
            yield described(line, now["epochs"])
        if len(there) != told or once or not goes_on:
            told = len(there)
            if now["seconds_left"] is not None and goes_on:
                yield progress_line(now)
        if once or not goes_on:
            yield ended(watched, now, is_trained)
            return
        sleep(SECONDS)


def standing(watched: "Run", lines: list[dict[str, Any]] | None) -> dict[str, Any]:
    """How a run stands by its lines: epochs done of all, seconds left by its last epochs, its last line. Of one whose
    lines cannot be read nobody knows the epoch, nor whether it has finished if it has deployed weights."""
    epochs, has_weights = watched.config().epochs, watched.weights_file.exists()
    trained = [line for line in lines or [] if "train" in line]
    done = trained[-1]["epoch"] if trained else 0
    took = _seconds_of(trained)
    left = median(took[-FEW:]) * (epochs - done) if took else None
    return {
        "run": str(watched.path),
        "is_training": is_locked(watched.lock_file),
        "is_finished": None if lines is None and has_weights else done >= epochs and has_weights,
        "epoch": None if lines is None else done,
        "epochs": epochs,
        "seconds_left": None if left is None else round(left, 1),
        "last": lines[-1] if lines else None,
    }


def _seconds_of(trained: list[dict[str, Any]]) -> list[float]:
    """What each epoch took with its evaluation, compiling left out; of those whose beginning and end are known, which
    lines of earlier versions do not say."""
    found, before = [], 0.0
    for line in trained:
        after = line.get("seconds")
        if before is not None and after is not None:
            compiling, evaluating = (line.get(name, 0.0) for name in ("compile_seconds", "evaluation_seconds"))
            found.append(after - before - compiling + evaluating)
        before = after
    return found


def _lines(watched: "Run", problems: list[str]) -> list[dict[str, Any]] | None:
    """All lines so far; None of a file that is damaged, which is told once and kept in `problems`."""
    try:
        return watched.metrics()
    except UserError as error:
        if (problem := one_line(error)) not in problems:
            problems.append(problem)
            notice(problem)
        return None


def described(line: dict[str, Any], epochs: int) -> str:
    """An epoch's line as people read it."""
    from fastarat.runs.metrics import accuracies

    parts = [f"epoch {line['epoch']}/{epochs}"]
    if "train" in line:
        parts.append(f"loss {line['train']['loss']:.3f}")
    parts += [accuracies(line[name]) for name in ("evaluation", "average") if name in line]
    if "images_per_s" in line:
        parts.append(f"{line['images_per_s']:,.0f} images/s")
    return " · ".join(parts)


def progress_line(now: dict[str, Any]) -> str:
    """How far it is."""
    share = now["epoch"] / max(now["epochs"], 1)
    return f"{'█' * round(20 * share):░<20} {100 * share:.0f} % · about {duration(now['seconds_left'])} left"


def ended(watched: "Run", now: dict[str, Any], is_trained: bool | None) -> str:
    """The last line; `is_trained` is None where nobody can tell."""
    if now["is_finished"]:
        return f"finished: {command('report', watched.path)} shows it"
    if is_trained is None:
        return "whether it goes on cannot be told: its disk has no locks"
    if is_trained:
        return "it goes on"
    if now["is_finished"] is None:
        return f"how far it came cannot be told: {command('report', watched.path)} shows what it deployed"
    return f"nobody trains in it: {command('train', '--resume', watched.path)} goes on"
