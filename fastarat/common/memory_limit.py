"""How much memory the processes here may take: the machine's, or less where a container or a job may have less."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def usable_memory() -> int:
    """Bytes: of the machine, or of the narrowest control group (Linux cgroups, version 1 or 2) round this process."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """The limits of this process's groups and of those round them, where there are any.

    In a container the groups that the machine has round it are not there to see: its own is the outermost.
    """
    for line in _text(MEMBERSHIP).splitlines():
        _, controllers, place = line.split(":", 2)
        if not controllers:
            folder, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(place)
        for group in (inner, *inner.parents):
            limit = _text(folder / group.relative_to("/") / name).strip()
            if limit.isdecimal():  # else "max"
                yield int(limit)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
