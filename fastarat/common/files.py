"""Files that are whole or not there: temporary file, fsync, rename. And what may be a file, or its name."""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fastarat.common.errors import UserError, WorkError
from fastarat.common.locks import hold, open_regular

LONGEST_NAME = 80
TEMPORARY = re.compile(r"\..+\.fastarat-\d{1,9}-[0-9a-f]{8}\.tmp")
"""what `write_atomically` begins: the number is that of its process, for people alone"""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it there; readers see old or new.

    A symbolic link at `path` is replaced, not followed; the umask decides who may read. Raises `WorkError` with one
    line if the disk is full or read-only; the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.fastarat-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        mode = _make(temporary)
        with _in_the_making(temporary):
            write(temporary)
            with _in_the_making(temporary):  # safetensors puts a file of its own there, which others may not read
                temporary.chmod(mode)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        synchronise(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    except RuntimeError as error:
        # torch reports a full disk as a RuntimeError of its own.
        raise WorkError(f"cannot write {path}: {str(error).splitlines()[0]}; is the disk full?") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make(path: Path) -> int:
    """Make a new empty file, and return the mode that the umask gives it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_atomically` had begun in `folder`, not below it, in processes that were killed."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            with _in_the_making(path) as is_left:
                if is_left:
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _in_the_making(path: Path) -> Iterator[bool]:
    """Lock a file for the block; yields whether it could be, so that nobody else is making it."""
    descriptor = hold(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_atomically` does. Raises as it does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line to a file, which is no symbolic link. Raises `WorkError` as `write_atomically` does."""
    try:
        with os.fdopen(open_regular(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: OSError) -> WorkError:
    reason, fix = error.strerror, "check the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space; what was saved before is whole, and a resumed run goes on from it"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "give a directory that you may write to"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
        reason, fix = f"{path.parent} is not there any more", "was it removed or renamed? Put it back, or begin again"
        if path.parent.is_dir():
            reason, fix = "what had been written of it was removed", "let nothing else delete files there"
    elif error.errno == errno.ELOOP:
        reason, fix = "it is a symbolic link, which is not followed", "move it away"
    return WorkError(f"cannot write {path}: {reason}; {fix}")


def synchronise(path: Path) -> None:
    """A power cut after this keeps the file, or the directory's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; a power cut after this keeps them. Raises `OSError`."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        synchronise(folder.parent)


def require_file(path: Path) -> None:
    """Raise `UserError` unless `path` is a file or a link to one: a FIFO waits for ever, a device never ends."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        what = "is a link to what is not there" if path.is_symlink() else "does not exist"
        raise UserError(f"{path} {what}") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise UserError(f"{path} is no file but a {kinds.get(stat.S_IFMT(mode), 'device')}")


def require_place(flag: str, path: Path, is_own: Callable[[Path], bool]) -> None:
    """Raise `UserError`, before there is anything to write, where no file can be written at `path`, or where it would
    take the place of one that `is_own` does not know: of what is no earlier one of its kind."""
    fix = f"give another {flag}"
    if path.is_dir():
        raise UserError(f"{flag} {path} is a directory: give a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag} {path}: there is no directory {path.parent}; make it first")
    if path.exists():
        require_file(path)
        if path.stat().st_size and not is_own(path):
            raise UserError(f"{flag}: {path} is a file of another kind, and stays as it is; {fix}")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; {fix}") from error


def expanded(path: str) -> Path:
    """A path whose first part may be `~` or `~user`. Raises `UserError` if nobody has such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise UserError(f"{path}: {home} is nobody's home on this machine; write the path without it") from error


def as_file_name(text: str) -> str:
    """`text`, which may come from a file, as a part of a file's name: letters, digits, `-`, `_` and inner dots."""
    return re.sub(r"[^\w.-]", "_", text, flags=re.ASCII)[:LONGEST_NAME].strip(".") or "_"
