"""Files that cannot be read or written, or fail their format's own checks: one line names the file and the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastarat.common.errors import UserError, WorkError

LEAVE_OUT = "'fastarat train --loading.corrupt skip' leaves such images out"
"""the fix for images that cannot be decoded, where each can be had without the others"""


class Damaged(Exception):
    """Why a file is damaged or cut short, in a few words."""


class Unread(Exception):
    """What is in order in a file and not read here, and what to do about it."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A block in which `Damaged`, `Unread` and `OSError` become a `UserError` that names `path`, which it raises."""
    try:
        yield
    except Damaged as error:
        raise UserError(f"{path} is damaged or cut short ({error}): copy or download it again") from error
    except Unread as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def writable(path: Path, fix: str) -> Iterator[None]:
    """A block in which an `OSError` becomes a `WorkError` that names `path`, which it raises; `fix` ends its line."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error.strerror or error}; {fix}") from error
