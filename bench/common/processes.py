"""Processes that a benchmark starts: what they need to run, and an end in time whatever they do."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastarat.common.signals import answered

ROOT = Path(__file__).parents[2]
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
"""of compiled code"""
_POLL_S = 0.1
_KILL_S = 2
_TAIL_BYTES = 1 << 16


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which a child finds the checkout from anywhere; `more` is set in addition."""
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def compile_caches(folder: Path) -> dict[str, str]:
    """The variables by which a child keeps all that it compiles in `folder`."""
    return {name: str(folder / name.lower()) for name in CACHES}


class OutOfTime(Exception):
    """The budget is spent."""


class Failed(Exception):
    """A process did not give a result: says why. `code`: that it ended with, or None."""

    def __init__(self, text: str, code: int | None = None):
        super().__init__(text)
        self.code = code


def result_of(arguments: Sequence[str], variables: dict[str, str], end: float, *, limit_s: float = math.inf) -> Any:
    """What Python, started with these arguments, prints last, as JSON.

    Raises `OutOfTime` if that takes beyond `end` (of `time.monotonic()`), and `Failed` if it takes beyond `limit_s`.
    """
    left = max(end - time.monotonic(), 0)
    timeout = min(left, limit_s) if min(left, limit_s) < math.inf else None
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise OutOfTime if left < limit_s else Failed(f"gave no result in {limit_s:g} s") from error
    if done.returncode:
        raise Failed(last_line(done.stderr)[:300] or f"ended with code {done.returncode}", done.returncode)
    return json.loads(last_line(done.stdout))


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int
    """its exit code; of one that a signal ended, the signal's number, negative"""
    was_stopped: bool
    """whether its time was over, so that it was told to end"""
    seconds: float
    output: str
    """the last 64 KiB of what it printed"""

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        return last_line(self.output)


def last_line(text: str) -> str:
    """The last line of `text` with a letter or a digit, without control characters."""
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if any(map(str.isalnum, line))), "")


def run_in_time(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    *,
    grace_s: float,
    variables: dict[str, str],
    watch: Callable[[str], None] = lambda line: None,
) -> Ending:
    """Run `command` in a process group of its own, its output appended to `log`; `watch` is told its last line.

    After `limit_s` the group gets SIGTERM, after `grace_s` more SIGKILL; so it does if this process is interrupted.
    What is left of the group when `command` ends gets SIGKILL at once.
    """
    started, begin = time.monotonic(), log.stat().st_size if log.exists() else 0
    process: subprocess.Popen | None = None
    told: list[int] = []

    def show() -> None:
        watch(last_line(_tail(log, begin)))

    try:
        # A signal that came while the process starts would leave nobody who knows it: it is answered afterwards.
        with log.open("ab") as file, answered(lambda number, _: told.append(number)):
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=variables,
                start_new_session=True,
            )
        for number in told:
            signal.raise_signal(number)
        was_stopped = not _has_ended(process, limit_s, show)
    finally:
        if process is not None:
            _end(process, grace_s, show)
    assert process is not None
    code = -signal.SIGKILL if process.returncode is None else process.returncode
    return Ending(code, was_stopped, time.monotonic() - started, _tail(log, begin))


def _has_ended(process: subprocess.Popen, seconds: float, show: Callable[[], None]) -> bool:
    """Wait at most `seconds` for the process to end; whether it did."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        show()
        time.sleep(_POLL_S)
    return process.poll() is not None


def _end(process: subprocess.Popen, grace_s: float, show: Callable[[], None]) -> None:
    """End what is left of a process and of all that it started."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            _has_ended(process, grace_s, show)
    finally:
        _signal(process, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a driver that hangs holds even what is killed
            process.wait(_KILL_S)


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # nobody is left in the group
        os.killpg(process.pid, number)


def _tail(log: Path, begin: int) -> str:
    """What `log` holds from byte `begin` on: its last part."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")
