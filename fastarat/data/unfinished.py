"""What a command makes, until it is whole: a folder beside its place, which no killed process leaves for good."""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Yield a new, empty folder beside `out`, in which it can be made and from which it can be renamed.

    The folder is removed at the end of the block if it is still there. While its process lives it is locked; those
    that killed processes left, for the same `out`, are removed first. Raises `OSError` if it cannot be made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead(out)
    folder, lock = out.with_name(f".{out.name}.fastarat-{secrets.token_hex(8)}.partial"), None
    try:
        lock = _made(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _made(folder: Path) -> int | None:
    """Make the folder; returns the open descriptor that locks it, None where the file system has no locks."""
    while True:
        folder.mkdir()
        lock = _locked(folder)
        if lock is not None or folder.exists():
            return lock
        # Another process, which saw it before it was locked, has removed it.


def _remove_dead(out: Path) -> None:
    name = re.compile(rf"\.{re.escape(out.name)}\.fastarat-[0-9a-f]{{16}}\.partial")
    for folder in filter(lambda path: name.fullmatch(path.name), out.parent.iterdir()):
        lock = _locked(folder)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Lock a folder, no link to one, until the descriptor is closed or the process ends; None if it cannot be."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.lstat()):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
    return None
