"""Why the processes of a launch failed: of all that they say and show, what is the cause."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from fastarat.common.distributed import OF_ANOTHER
from fastarat.common.ending import UNFORESEEN
from fastarat.common.errors import UserError, WorkError
from fastarat.common.json_files import read_json


@dataclass(frozen=True)
class Cause:
    """Why processes failed."""

    text: str
    kind: type[UserError | WorkError] = WorkError
    was_killed: bool = False
    """it could say nothing itself"""
    may_pass: bool = True
    """whether processes that are started again may get past it: a full disk would only be met once more"""

    def error(self, goes_on: str) -> UserError | WorkError:
        """It, to be raised where the work ends; `goes_on` says how it goes on, where no process could say so."""
        return self.kind(f"{self.text}; {goes_on}" if self.was_killed else self.text)

    @property
    def in_short(self) -> str:
        """It, where the run goes on; of another process all that is known is that it has ended, or hangs."""
        return self.text.partition(":" if self.text.startswith(OF_ANOTHER) else "\n")[0]


def cause_of(failures: Mapping[int, ProcessFailure], folder: Path) -> Cause | None:
    """Why processes failed, by how each rank ended and by what they wrote in `folder`; None if they were told to end.

    One that was killed could say nothing itself, and is the cause of what others say. Of those that said why, in files
    of `folder`, the first counts that does not say it of another one. An abort counts after them: libraries abort those
    that wait for a process that is gone.
    """
    killed, aborted = _killed(failures)
    said = _said(folder)
    own = [cause for cause in said if not cause.text.startswith(OF_ANOTHER)]
    return next(iter((*killed, *own, *aborted, *said)), None)


def raise_why(failures: Mapping[int, ProcessFailure], folder: Path, goes_on: str) -> None:
    """Raise `cause_of` them, if there is one; `goes_on`: see `Cause.error`."""
    if cause := cause_of(failures, folder):
        raise cause.error(goes_on) from None


def _killed(failures: Mapping[int, ProcessFailure]) -> tuple[list[Cause], list[Cause]]:
    """For each process that a signal ended, and apart from them those that aborted. SIGTERM is what the launcher ends
    the others with."""
    killed, aborted = [], []
    for rank, failure in sorted(failures.items()):
        if failure.exitcode >= 0 or failure.exitcode == -signal.SIGTERM:
            continue
        number = signal.Signals(-failure.exitcode)
        why = "a library failed, or waited too long" if number == signal.SIGABRT else "out of memory?"
        cause = Cause(f"process {rank} was killed ({number.name}; {why})", was_killed=True)
        (aborted if number == signal.SIGABRT else killed).append(cause)
    return killed, aborted


def _said(folder: Path) -> list[Cause]:
    """What processes said, in the order of time; last that there is something which cannot be read."""
    causes: list[Cause] = []
    files = sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    for file in files:
        try:
            said = read_json(file)
            kind, text = UserError if said["code"] == 2 else WorkError, str(said["message"]["message"])
        except (UserError, KeyError, TypeError):  # no file of ours
            continue
        causes.append(Cause(text, kind, may_pass=text.startswith(OF_ANOTHER) or UNFORESEEN in text))
    if len(causes) < len(files):
        causes.append(Cause("a process failed, and what it said of it cannot be read"))
    return causes
