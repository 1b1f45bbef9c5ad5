"""CPU time of this process and of all that it started, worker processes that go on living included."""

import os
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LEAST_TICKS = 10
"""The system counts in ticks: of fewer than these a figure could be off by more than 10 %."""


def cpu_seconds() -> float:
    """User and system time up to now: of this process, of its descendants that live, and of those that have ended."""
    own = os.times()
    ended = own.children_user + own.children_system
    return own.user + own.system + ended + sum(_seconds(process) for process in descendants(os.getpid()))


def per_thousand(seconds: float, num_images: int) -> float | None:
    """CPU-seconds per 1,000 images; None where they took fewer than `LEAST_TICKS`."""
    return 1000 * seconds / num_images if round(seconds * TICKS_PER_S) >= LEAST_TICKS else None


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


def _seconds(pid: int) -> float:
    """Of a process and of its children that have ended; 0 if it has just ended itself."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / TICKS_PER_S if fields else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, which follows the name in brackets; none if it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
