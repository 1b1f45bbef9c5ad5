"""Time as people read it, and when to speak of work that goes on where nothing can be shown live."""

import time

_FIRST_S = 60.0
_SHARE = 0.1


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 20 s, 1 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Seldom:
    """When work is worth another line of a log: after a minute without one, and of work that has gone on for long after
    a tenth of that time."""

    def __init__(self):
        self.started = self.last = time.monotonic()

    def is_due(self) -> bool:
        """Whether a line is to be printed now, which then was."""
        now = time.monotonic()
        is_due = now - self.last >= max(_FIRST_S, _SHARE * (now - self.started))
        if is_due:
            self.last = now
        return is_due

    def spoken(self) -> None:
        """Something else was printed."""
        self.last = time.monotonic()
