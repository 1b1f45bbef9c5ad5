"""CPU time of this process and of all that it started, worker processes that go on living included."""

import ctypes
import os
import resource
import time
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """User and system time up to now: of this process, of its descendants that live, and of those that have ended.

    To the microsecond, by the processes' own clocks (POSIX's clock_getcpuclockid); but what a descendant's own ended
    children used is known in the system's ticks alone, 10 ms as a rule.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(own_seconds(process) + _of_ended_children(process) for process in descendants(os.getpid()))
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def descendants(pid: int) -> set[int]:
    """The living processes that `pid` and its descendants started."""
    parents = {int(path.name): _stat(int(path.name)) for path in PROC.iterdir() if path.name.isdigit()}
    children: dict[int, set[int]] = {}
    for child, fields in parents.items():
        if fields:
            children.setdefault(int(fields[1]), set()).add(child)
    found, new = set[int](), children.get(pid, set())
    while new:
        found |= new
        new = {child for parent in new for child in children.get(parent, set())}
    return found


def own_seconds(pid: int) -> float:
    """CPU time of a process, its threads that have ended included; 0 if it has just ended itself."""
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0


def _of_ended_children(pid: int) -> float:
    return sum(map(int, _stat(pid)[13:15])) / TICKS_PER_S


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, which follows the name in brackets; none if it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
