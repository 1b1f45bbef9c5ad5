"""`fastarat eval MODEL`: flags, work, report."""

from fastarat.commands.evaluate.command import run

__all__ = ["run"]
