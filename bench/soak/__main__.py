"""Kill trainings at random moments, resume them, and count what was lost against one that is left alone.

    python -m bench.soak
    python -m bench.soak --kills 20 --rows nowhere.jsonl

Each run is one process, killed (SIGKILL) again and again between its first checkpoint and its end, while it trains,
evaluates, or writes; then it finishes. The row has every kill, how many of them cut off a file that was being written,
and how many bits of the last checkpoint, the deployed weights and the metrics differ from the undisturbed run's.
"""

import argparse
import math
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import command
from bench.common.differences import num_different_bits
from bench.common.processes import environment, last_line
from bench.common.rows import RESULTS, Row, base_row, write_row
from fastarat.common.console import notice, print_table, progress
from fastarat.common.errors import WorkError

RUN = (
    *("digits-arat", "--device", "cpu", "--dtype", "fp32", "--compile", "eager", "--epochs", "12"),
    *("--num-train-images", "512", "--batch", "64", "--attack.steps", "2", "--checkpoint.every-s", "0.1"),
    *("--evaluation.every-epochs", "4", "--evaluation.num-images", "50", "--evaluation.steps", "1"),
)
LONGEST_S = 1.5
"""the latest moment of a kill, in seconds after a session has begun"""
START_S = 300


@dataclass
class Counts:
    """What came of it."""

    runs: int = 0
    kills: int = 0
    cut_off: int = 0
    """kills that left a file unfinished"""
    bits_lost: int = 0
    runs_that_differ: int = 0


@command.program("bench.soak")
def main(args: list[str] | None) -> int:
    """Kill, resume, compare, write the row; 0 if no bit was lost, 1 if one was."""
    parser = command.Parser("bench.soak", __doc__)
    parser.add_argument("--kills", type=int, help="default: 1000")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    command.flags(parser, "device", "rows", "budget", "smoke", "json")
    rows = RESULTS / "soak.jsonl"
    arguments = command.parsed(parser, args, "is where it runs", rows=(None, rows, rows), kills=(2, 1000, 1000))
    command.check_positive(arguments, "kills", "budget")
    command.check_writable(arguments.rows)
    settings = {"command": ["train", *RUN], "kills": arguments.kills, "seed": arguments.seed}
    row = base_row("soak", settings, "digits", device="cpu")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastarat-soak-") as folder:
        counts = _soaked(arguments, Path(folder), started + (arguments.budget or math.inf))
    found = {**vars(counts), "seconds": round(time.monotonic() - started), "correct": counts.bits_lost == 0}
    row = {**row, **found}
    if counts.bits_lost:
        row["error"] = f"{counts.bits_lost} bits were lost"
    write_row(arguments.rows, row)
    return command.report([row], arguments, print_tables, headline)


def _soaked(arguments: argparse.Namespace, folder: Path, end: float) -> Counts:
    moments, counts, whole = random.Random(arguments.seed), Counts(), folder / "whole"
    _finished(_start("train", *RUN, "--out", whole))
    with progress("kills", arguments.kills) as advance:

        def has_time() -> bool:
            return counts.kills < arguments.kills and time.monotonic() < end

        while has_time():
            run = folder / f"run-{counts.runs}"
            before = counts.kills
            while has_time() and _killed(run, moments, counts):
                advance(1)
            if run.exists() and not (run / "model.safetensors").exists():
                _finished(_start("train", "--resume", run))
            counts.runs += 1
            bits = num_different_bits(run, whole)
            counts.bits_lost += bits
            counts.runs_that_differ += bits > 0
            notice(f"run {counts.runs}: {counts.kills - before} kills, {bits} bits lost; {counts.kills} kills in all")
    return counts


def _killed(run: Path, moments: random.Random, counts: Counts) -> bool:
    """Train on, and kill that at some moment; whether it was still training."""
    begun = _written(run / "record.json")
    process = _start("train", "--resume", run) if run.exists() else _start("train", *RUN, "--out", run)
    try:
        _wait_for_session(process, run, begun)
        process.wait(moments.uniform(0, LONGEST_S))
    except subprocess.TimeoutExpired:
        pass
    finally:  # whatever ends this
        process.kill()
    is_killed = process.wait() == -signal.SIGKILL
    counts.kills += is_killed
    counts.cut_off += is_killed and any(run.rglob(".*.tmp"))
    if not is_killed:
        _finished(process)
    return is_killed


def _wait_for_session(process: subprocess.Popen[str], run: Path, begun: int) -> None:
    """Wait until training has begun in this process, or it has ended. Raises `WorkError` if it does not come."""
    end = time.monotonic() + START_S
    while process.poll() is None:
        if _written(run / "record.json") != begun and any((run / "checkpoints").glob("step-*.pt")):
            return
        if time.monotonic() > end:
            raise WorkError(f"a session has not begun in {START_S} s")
        time.sleep(0.005)


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def _start(*args: object) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "fastarat", *map(str, args)]
    return subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(OMP_NUM_THREADS="1")
    )


def _finished(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise WorkError(f"a run ended with code {process.returncode}: {last_line(said)}")


def print_tables(rows: Sequence[Row]) -> None:
    """The counts, to stdout."""
    names = ("runs", "kills", "cut_off", "runs_that_differ", "bits_lost", "seconds")
    print_table("SIGKILL at random moments", [*names], [[str(row[name]) for name in names] for row in rows])


def headline(rows: Sequence[Row]) -> str:
    """In a line: kills, and bits lost."""
    row = rows[-1]
    runs = f"{row['runs']} run{'s' * (row['runs'] > 1)}"
    kills = f"{row['kills']} kills of {runs}, {row['cut_off']} while a file was written"
    return f"{kills}: {row['bits_lost']} bits lost"


if __name__ == "__main__":
    sys.exit(main())
