"""Files that are whole or not there: temporary file, fsync, rename."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fastarat.errors import WorkError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there; readers see old or new.

    Raises `WorkError` with one line if the disk is full or read-only; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        synchronise(path.parent)
    except OSError as e:
        raise _write_error(path, e) from None
    except RuntimeError as e:
        # torch and safetensors report a full disk as a RuntimeError of their own.
        raise WorkError(f"cannot write {path}: {str(e).splitlines()[0]}; is the disk full?") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line. Raises `WorkError` as `write_atomically` does."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise _write_error(path, e) from None


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _write_error(path: Path, e: OSError) -> WorkError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space; what was saved before is whole, and a resumed run goes on from it"
    elif e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "give a directory that you may write to"
    else:
        fix = "check the disk"
    return WorkError(f"cannot write {path}: {e.strerror}; {fix}")


def synchronise(path: Path) -> None:
    """A power cut after this keeps the file, or the directory's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(path: Path) -> IO[str] | None:
    """Open a file that no two processes can have at once, until it is closed; None while another has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
