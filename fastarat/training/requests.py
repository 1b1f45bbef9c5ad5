"""What is asked of a training from outside: the end, by a signal; a checkpoint, by a signal or by a file that comes."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fastarat.common.signals import answered, saving_answered

_BETWEEN_LOOKS_S = 1.0


class Requests:
    """What came to this process; the loop asks after each step. `notice`: the path of the file, see `Notice`."""

    def __init__(self, notice: str | None):
        self.stop_signal = 0
        """the signal that asked for the end"""
        self.notice = Notice(notice)
        self._signalled = False

    def for_checkpoint(self) -> bool:
        """Whether a signal, or a notice, asks for a checkpoint."""
        return self._signalled or self.notice.has_come()

    def is_answered(self) -> None:
        """Forget the signal for a checkpoint, which is written."""
        self._signalled = False

    @contextmanager
    def heard(self, *, alone: bool) -> Iterator[None]:
        """Signals are requests in this block. `alone`: whether there is no other process, for a launcher ends those
        that are left when one has failed, which still have to say why."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.stop_signal = number

        def save(number: int, frame: FrameType | None) -> None:
            self._signalled = True

        with saving_answered(save), answered(stop) as afterwards:
            try:
                yield
            except BaseException:
                if not alone:
                    afterwards.update(dict.fromkeys(afterwards, signal.SIG_IGN))
                raise


class Notice:
    """Notice that a machine is about to be taken away, as providers of spot machines give it: the file `path` comes;
    None: there is none to look for."""

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
