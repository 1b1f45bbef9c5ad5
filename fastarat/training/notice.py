"""Notices that a machine is about to be taken away, as providers of spot machines give them: a file that comes."""

import time
from pathlib import Path

_BETWEEN_LOOKS_S = 1.0


class Notice:
    """Looks for the file `path`; None: there is none to look for."""

    def __init__(self, path: str | None):
        self.path = Path(path) if path else None
        self.was_there = False
        self.last_look = -_BETWEEN_LOOKS_S

    def has_come(self) -> bool:
        """Whether the file has come since the last call; it is looked for once a second."""
        now = time.monotonic()
        if self.path is None or now - self.last_look < _BETWEEN_LOOKS_S:
            return False
        self.last_look, was_there = now, self.was_there
        try:
            self.was_there = self.path.exists()
        except OSError:  # of a disk that is gone, or a folder that nobody may look into
            self.was_there = False
        return self.was_there and not was_there
