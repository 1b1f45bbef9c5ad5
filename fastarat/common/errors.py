"""The ways in which a command ends before its work is done, each with one line that names the fix."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What can be known before work starts: flags, files, devices. Exit code 2."""


class WorkError(RuntimeError):
    """A failure in the middle of work; what was saved stays saved. Exit code 1."""


class Interrupted(Exception):
    """A signal asked for the end, and what is done is kept: says where it stopped. Exit code 128 + `number`."""

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.number = number
        """the signal's"""


def unknown(kind: str, name: str, available: Iterable[str], listed_by: str = "") -> UserError:
    """The error for a name that is not one of `available`, with the nearest right ones, and all of them or, where they
    are many, the command that lists them."""
    names = sorted(available)
    right = f"{listed_by!r} lists all" if listed_by else f"give {', '.join(names)}"
    return UserError(f"unknown {kind} {name!r}: {right}{did_you_mean(name, names)}")


def did_you_mean(name: str, names: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """The question, after a semicolon, that offers the nearest of `names` as `show` writes them; '' if none is near."""
    near = get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(show, near))}?" if near else ""


def first_line(error: BaseException) -> str:
    """What a library's error says, of which one line fits into ours; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
