"""Kill trainings at random moments, resume them, and count what was lost against one that is left alone.

    python -m bench.soak --resume
    python -m bench.soak --kills 20 --rows nowhere.jsonl

Each run is one process, killed (SIGKILL) again and again between its first checkpoint and its end, while it trains,
evaluates, or writes; then it finishes. Every second kill waits for a file that is being written, and cuts it off.
Sessions that are killed begin with Python and torch loaded (`bench.soak.sessions`), which is two thirds of a cycle
otherwise; what they leave is finished by a command of its own, as the undisturbed run is made by one.

A row a run: its kills, how many of them cut off a file that was being written, and how many bits of the last
checkpoint, the deployed weights and the metrics differ from the undisturbed run's.
"""

import argparse
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from bench.common import command
from bench.common.differences import num_different_bits
from bench.common.processes import environment, last_line
from bench.common.rows import RESULTS, Row, base_row, read_rows, write_row
from bench.soak.report import headline, print_tables
from bench.soak.sessions import Sessions
from fastarat.common.console import notice, progress
from fastarat.common.errors import WorkError

RUN = (
    *("digits-arat", "--device", "cpu", "--dtype", "fp32", "--compile", "eager", "--epochs", "12", "--no-report"),
    *("--num-train-images", "256", "--batch", "32", "--attack.steps", "1", "--checkpoint.every-s", "0.1"),
    *("--evaluation.every-epochs", "4", "--evaluation.num-images", "50", "--evaluation.steps", "1"),
)
LONGEST_S = 0.7
"""the latest moment of a kill, in seconds after a session has begun"""
KILLS_OF_A_RUN = 20
"""at most: then it is let end, and compared"""
A_FILE_COMES_S = 2
"""seconds for which every second kill waits for a file that is being written"""
START_S = 300


@dataclass
class Counts:
    """What came of a run."""

    runs: int = 1
    kills: int = 0
    cut_off: int = 0
    """kills that left a file unfinished"""
    bits_lost: int = 0


@command.program("bench.soak")
def main(args: list[str] | None) -> int:
    """Kill, resume, compare, write rows; 0 if no bit was lost, 1 if one was."""
    parser = command.Parser("bench.soak", __doc__)
    parser.add_argument("--kills", type=int, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    resume = "count the kills of the rows that there are, and go on"
    command.flags(parser, "device", "rows", "budget", "smoke", "json", resume=resume)
    path = RESULTS / "soak.jsonl"
    arguments = command.parsed(parser, args, "is where it runs", rows=(None, path, path), kills=(2, 1000, 1000))
    command.check_positive(arguments, "kills", "budget")
    command.check_writable(arguments.rows)
    rows = list(read_rows(arguments.rows)) if arguments.resume and arguments.rows else []
    with tempfile.TemporaryDirectory(prefix="fastarat-soak-") as folder:
        for row in _soaked(arguments, Path(folder), rows):
            write_row(arguments.rows, row)
            rows.append(row)
    return command.report(rows, arguments, print_tables, headline)


def _soaked(arguments: argparse.Namespace, folder: Path, before: Sequence[Row]) -> Iterator[Row]:
    end = time.monotonic() + (arguments.budget or math.inf)
    number, kills, whole = len(before), sum(row["kills"] for row in before), folder / "whole"
    if kills < arguments.kills:
        _do("train", *RUN, "--out", whole)
    os.environ.update(environment(OMP_NUM_THREADS="1"))
    sessions = Sessions(folder / "log")
    with progress("kills", arguments.kills) as advance:
        advance(kills)
        while kills < arguments.kills and time.monotonic() < end:
            settings = {"command": ["train", *RUN], "seed": arguments.seed, "run": number}
            row, started = base_row("soak", settings, "digits", device="cpu"), time.monotonic()
            moments = random.Random(f"{arguments.seed} {number}")
            most = min(arguments.kills - kills, KILLS_OF_A_RUN)
            counts = _run(folder / "run", whole, sessions, moments, most, end)
            kills, number = kills + counts.kills, number + 1
            advance(counts.kills)
            notice(f"run {number}: {counts.kills} kills, {counts.bits_lost} bits lost; {kills} kills in all")
            row |= {**vars(counts), "seconds": round(time.monotonic() - started), "correct": counts.bits_lost == 0}
            yield {**row, "error": f"{counts.bits_lost} bits were lost"} if counts.bits_lost else row


def _run(run: Path, whole: Path, sessions: Sessions, moments: random.Random, most: int, end: float) -> Counts:
    """Make a run, kill it `most` times at most, let it end, compare it, and remove it."""
    counts = Counts()
    while counts.kills < most and time.monotonic() < end and _killed(run, sessions, moments, counts):
        pass
    if not (run / "model.safetensors").exists():
        _do("train", *(("--resume", run) if run.exists() else (*RUN, "--out", run)))
    counts.bits_lost = num_different_bits(run, whole)
    shutil.rmtree(run)
    return counts


def _killed(run: Path, sessions: Sessions, moments: random.Random, counts: Counts) -> bool:
    """Train on, and kill that at some moment; whether it was still training."""
    begun, moment, waits = _written(run / "record.json"), moments.uniform(0, LONGEST_S), moments.random() < 0.5
    process = sessions.start("train", "--resume", run) if run.exists() else sessions.start("train", *RUN, "--out", run)
    try:
        _wait_for_session(process, run, begun)
        process.join(moment)
        comes = time.monotonic() + A_FILE_COMES_S * waits
        while process.exitcode is None and time.monotonic() < comes and not _is_cut_off(run):
            time.sleep(0.001)
    finally:  # whatever ends this
        process.kill()
        process.join()
    is_killed = process.exitcode == -signal.SIGKILL
    counts.kills += is_killed
    counts.cut_off += is_killed and _is_cut_off(run)
    if not is_killed and process.exitcode:
        said = last_line(sessions.log.read_text(errors="replace"))
        raise WorkError(f"a session ended with code {process.exitcode}: {said}")
    return is_killed


def _is_cut_off(run: Path) -> bool:
    """Whether a file in it is being written, or was."""
    return any(folder.is_dir() and any(folder.glob(".*.tmp")) for folder in (run, run / "checkpoints"))


def _wait_for_session(process: ForkServerProcess, run: Path, begun: int) -> None:
    """Wait until training has begun in this process, or it has ended. Raises `WorkError` if it does not come."""
    end = time.monotonic() + START_S
    while process.exitcode is None:
        if _written(run / "record.json") != begun and any((run / "checkpoints").glob("step-*.pt")):
            return
        if time.monotonic() > end:
            raise WorkError(f"a session has not begun in {START_S} s")
        time.sleep(0.02)


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def _do(*args: object) -> None:
    """Do `fastarat ARGS` in a process of its own. Raises `WorkError` if that fails."""
    arguments = [sys.executable, "-m", "fastarat", *map(str, args)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(OMP_NUM_THREADS="1"), check=False)
    if done.returncode:
        raise WorkError(f"a run ended with code {done.returncode}: {last_line(done.stderr)}")


if __name__ == "__main__":
    sys.exit(main())
