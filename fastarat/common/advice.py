"""What a message tells a user to do: commands that can be pasted into a shell, many problems as one line."""

import shlex
from pathlib import Path

from fastarat.common import console
from fastarat.common.errors import UserError


def command(*words: object) -> str:
    """`fastarat` with these words, each quoted for a shell where needed, between marks that do not stand in it; a path
    is never taken for a flag."""
    named = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    text = f"fastarat {shlex.join(named)}"
    mark = next((mark for mark in "'\"`" if mark not in text), " ")
    return f"{mark}{text}{mark}"


MOST_OF_A_LINE = 250
"""characters of a problem among several in a message"""


def require_none(source: Path | str, problems: list[str]) -> None:
    """Raise one `UserError` naming the first few of `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        all_of_them = f"; {command('data', 'check', source)} lists every one" if more else ""
        first = "; ".join(console.one_line(line, MOST_OF_A_LINE) for line in problems[:3])  # names may be anything
        raise UserError(f"{source}: {first}{more}{all_of_them}")
