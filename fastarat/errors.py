"""The two ways a command ends badly, each with one line that names the fix."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What can be known before work starts: flags, files, devices. Exit code 2."""


class WorkError(RuntimeError):
    """A failure in the middle of work; what was saved stays saved. Exit code 1."""


def unknown(kind: str, name: str, available: Iterable[str]) -> UserError:
    """The error for a name that is not one of `available`, with the nearest right ones."""
    names = sorted(available)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return UserError(f"Unknown {kind} {name!r}. Available: {', '.join(names)}.{hint}")
