"""Signals that ask for the end (Ctrl-C, a scheduler's SIGTERM, a terminal that has gone), or for a checkpoint."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from fastarat.common.errors import Interrupted

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVING = signal.SIGUSR1
"""asks for a checkpoint, as a scheduler does (Slurm: --signal=USR1@120) that will end the work before long"""


class Stopped(KeyboardInterrupt):
    """One of `ENDING` came: it ends work wherever that is, as Ctrl-C does."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def answered(answer: Callable[[int, FrameType | None], Any]) -> Iterator[dict[int, Any]]:
    """Let `answer(number, frame)` answer the signals of `ENDING`; yields what answers each of them afterwards.

    Ctrl-C is answered where a shell that started us in the background would have it ignored, too; SIGHUP is not, since
    ignoring it is what nohup is for. In any thread but the main one signals are the caller's, and nothing is done.
    """
    afterwards: dict[int, Any] = {}
    if current_thread() is main_thread():
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                afterwards[number] = signal.signal(number, answer)
    try:
        yield afterwards
    finally:
        for number, handler in afterwards.items():
            signal.signal(number, handler)


@contextmanager
def saving_answered(answer: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Let `answer` answer `SAVING`, which a launcher holds back until then; nothing is done in any other thread."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(SAVING, answer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (SAVING,))
    try:
        yield
    finally:
        signal.signal(SAVING, before)


def stop(number: int, frame: FrameType | None) -> None:
    """The answer that raises `Stopped`."""
    raise Stopped(number)


def number_of(stopped: KeyboardInterrupt | Interrupted) -> int:
    """Which signal it was; SIGINT of Python's own."""
    return stopped.number if isinstance(stopped, (Stopped, Interrupted)) else signal.SIGINT
