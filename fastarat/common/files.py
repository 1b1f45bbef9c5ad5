"""Files that are whole or not there (temporary file, fsync, rename), and files of others that are read with care."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

from fastarat.common.console import notice
from fastarat.common.errors import UserError, WorkError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""errors of disks that have no locks: Lustre without -o flock, some of NFS and FUSE"""
_TRIES, _LOOK_S = 4, 0.05
_locked: WeakSet[IO[str]] = WeakSet()
"""the files that this process has by `lock`"""
MOST_JSON_BYTES = 1 << 24
"""of files that describe something in some thousand bytes; a parsed value takes up to thirty times its text"""
DEEPEST_JSON = 32
MOST_BITS = 64
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


def hold(path: Path, flags: int) -> int | None:
    """Lock what lies there, no link to it, until the descriptor is closed or the process ends; None if it cannot be.

    Whatever is unfinished is locked by the process that makes it: a process's number says nothing in another container,
    or on a shared disk.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
    return None


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write_atomically` does. Raises as it does."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line to a file, which is no symbolic link. Raises `WorkError` as `write_atomically` does."""
    try:
        with os.fdopen(_open_regular(path, os.O_WRONLY | os.O_APPEND), "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_error(path, error) from error


def _open_regular(path: Path, flags: int) -> int:
    """Open a file or make it; raises `OSError` for a symbolic link and for what is no file, and waits for nothing."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


def _write_error(path: Path, error: OSError) -> WorkError:
    reason, fix = error.strerror, "check the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space; what was saved before is whole, and a resumed run goes on from it"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        fix = "give a directory that you may write to"
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


def lock(path: Path) -> IO[str] | None:
    """Open an empty file that no two processes can have at once, until it is closed; None while another has it.

    A disk that knows no locks gives it to everyone, with a notice; processes that are forked do not keep it. Raises
    `UserError` if something else lies there (a symbolic link is not followed), `OSError` if it cannot be made.
    """
    foreign = UserError(f"{path} is no lock of fastarat's, which is an empty file: move it away")
    try:
        file = os.fdopen(_open_regular(path, os.O_RDWR), "r+", encoding="utf-8")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EINVAL, errno.ENXIO):
            raise
        raise foreign from error
    if os.fstat(file.fileno()).st_size:
        file.close()
        raise foreign
    try:
        _lock_patiently(file)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        notice(f"the disk of {path.parent} has no locks: start nothing else there meanwhile")
    _locked.add(file)
    return file


def _lock_patiently(file: IO[str]) -> None:
    """Lock it, in a few tries: whoever looks whether it is locked has it for an instant. Raises `OSError`."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_S)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool | None:
    """Whether a process has what `lock` opens at `path`; None where the disk has no locks, so that nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if isinstance(error, BlockingIOError) else None
    finally:
        os.close(descriptor)
    return False


def _close_locks() -> None:
    """In a forked process, which may outlive its parent: whoever goes on with the work would wait for it."""
    for file in list(_locked):
        file.close()


os.register_at_fork(after_in_child=_close_locks)


def require_file(path: Path) -> None:
    """Raise `UserError` unless `path` is a file or a link to one: a FIFO waits for ever, a device never ends."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise UserError(f"{path} is no file but a {kinds.get(stat.S_IFMT(mode), 'device')}")


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """What the JSON file `path` holds, as `parse_json` reads it. Raises `UserError`, which names no fix."""
    require_file(path)
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise ValueError(f"{size} bytes are more than {most_bytes}")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with its `checksum_of`, so that a power cut keeps it. Raises `OSError`."""
    sealed = {**values, "checksum": checksum_of(values)}
    path.write_text(json.dumps(sealed, indent=2) + "\n", encoding="utf-8")
    synchronise(path)


def read_sealed(path: Path, version: int, *, fix: str, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """A JSON object that `write_sealed` wrote, with its version and without its checksum.

    Raises `UserError` with `fix` if it cannot be read, has another version, or has changed since.
    """
    try:
        values = read_json(path, most_bytes)
    except UserError as error:
        raise UserError(f"{error}: {fix}") from error
    found = values.get("version") if isinstance(values, dict) else None
    if type(found) is not int:
        raise UserError(f"{path} cannot be read (it has no version): {fix}")
    if found != version:
        age, way_out = ("a newer", f"upgrade fastarat, or {fix}") if found > version else ("an older", fix)
        formats = f"it has format {found}, and this fastarat reads {version}"
        raise UserError(f"{path} was made by {age} fastarat ({formats}): {way_out}")
    if values.pop("checksum", None) != checksum_of(values):
        raise UserError(f"{path} cannot be read (it has changed since it was written): {fix}")
    return values


def parse_json(text: bytes | str) -> Any:
    """JSON of others: UTF-8, nested at most `DEEPEST_JSON` deep, numbers finite and of at most `MOST_BITS` bits.

    Raises `ValueError` of one line for anything else.
    """
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is no UTF-8") from error
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
    return value


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _whole(digits: str) -> int:
    if len(digits) > MOST_BITS or abs(int(digits)).bit_length() > MOST_BITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def checksum_of(values: dict[str, Any]) -> str:
    """SHA-256 (64 hex digits) of everything in a JSON object but its own entry "checksum"."""
    rest = {name: value for name, value in values.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
