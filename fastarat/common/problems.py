"""Many problems, as one error of one line."""

from pathlib import Path

from fastarat.common import console
from fastarat.common.advice import command
from fastarat.common.errors import UserError

MOST_OF_A_LINE = 250
"""characters of a problem among several in a message"""


def require_none(source: Path | str, problems: list[str]) -> None:
    """Raise one `UserError` naming the first few of `problems`, if there are any."""
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        all_of_them = f"; {command('data', 'check', source)} lists every one" if more else ""
        first = "; ".join(console.one_line(line, MOST_OF_A_LINE) for line in problems[:3])  # names may be anything
        raise UserError(f"{source}: {first}{more}{all_of_them}")
