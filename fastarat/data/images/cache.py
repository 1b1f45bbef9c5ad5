"""What is worked out once about a data set and kept: where, and by which key."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import expanded, write_atomically

CACHE = "prepared"
CACHES = (CACHE, "decoded", "scanned", "checked")
"""Folders under `data_root()` that hold what was made of data sets, and no data set."""


def data_root() -> Path:
    """Where named data sets lie: $FASTARAT_DATA, else ~/.cache/fastarat. Raises `UserError` if there is no home."""
    chosen = os.environ.get("FASTARAT_DATA")
    if chosen:
        return expanded(chosen)
    try:
        return Path.home() / ".cache" / "fastarat"
    except RuntimeError:  # a container's user, without a name and without $HOME
        raise UserError("this user has no home to look for data in: set FASTARAT_DATA to a folder") from None


def once(path: Path, kept: Path, what: str, check: Callable[[], None]) -> None:
    """`check` the file at `path`, unless it has been and neither the file nor `what` is checked has changed.

    It is remembered in the folder `kept` by the file's place, size, time and inode; where nothing can be kept, the
    file is checked each time. `check` raises if something is wrong.
    """
    status = path.stat()
    mark = os.fsencode(f"{what} {path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n")
    place = kept / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    with contextlib.suppress(OSError):
        if place.read_bytes() == mark:
            return
    check()
    with contextlib.suppress(OSError, WorkError):
        kept.mkdir(parents=True, exist_ok=True)
        write_atomically(place, lambda temporary: temporary.write_bytes(mark))
