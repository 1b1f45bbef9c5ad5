"""Locks of files: what is being made or used, by whom, and not after its process has ended."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import IO
from weakref import WeakSet

from fastarat.common.console import notice
from fastarat.common.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""errors of disks that have no locks: Lustre without -o flock, some of NFS and FUSE"""
_TRIES, _LOOK_S = 4, 0.05
_locked: WeakSet[IO[str]] = WeakSet()
"""the files that this process has by `lock`"""


def open_regular(path: Path, flags: int) -> int:
    """Open a file or make it; raises `OSError` for a symbolic link and for what is no file, and waits for nothing."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return descriptor


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


def lock(path: Path) -> IO[str] | None:
    """Open an empty file that no two processes can have at once, until it is closed; None while another has it.

    A disk that knows no locks gives it to everyone, with a notice; processes that are forked do not keep it. Raises
    `UserError` if something else lies there (a symbolic link is not followed), `OSError` if it cannot be made.
    """
    foreign = UserError(f"{path} is no lock of fastarat's, which is an empty file: move it away")
    try:
        file = os.fdopen(open_regular(path, os.O_RDWR), "r+", encoding="utf-8")
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
