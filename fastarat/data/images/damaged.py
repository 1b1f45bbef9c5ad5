"""Files that their format's own checks, or their size, speak against: one line that names the file and the fix."""

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
    """Turn `Damaged`, `Unread` and `OSError` into a `UserError` that names `path`."""
    try:
        yield
    except Damaged as e:
        raise UserError(f"{path} is damaged or cut short ({e}): copy or download it again.") from None
    except Unread as e:
        raise UserError(f"{path}: {e}.") from None
    except OSError as e:
        raise UserError(f"Cannot read {path}: {e.strerror or e}.") from e
