"""What a command makes, until it is whole: a folder beside its place, which no killed process leaves forever."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastarat.common.locks import hold

FOLDER = os.O_RDONLY | os.O_DIRECTORY


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
        lock = hold(folder, FOLDER)
        if lock is not None or folder.exists():
            return lock
        # Another process, which saw it before it was locked, has removed it.


def _remove_dead(out: Path) -> None:
    name = re.compile(rf"\.{re.escape(out.name)}\.fastarat-[0-9a-f]{{16}}\.partial")
    for folder in filter(lambda path: name.fullmatch(path.name), out.parent.iterdir()):
        lock = hold(folder, FOLDER)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
