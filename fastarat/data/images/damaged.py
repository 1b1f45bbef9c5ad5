"""Files that fail their format's own checks, or have the wrong size: one line names the file and the fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastarat.common.errors import UserError


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
