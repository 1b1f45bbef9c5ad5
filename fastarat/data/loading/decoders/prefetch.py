"""Run an iterator a few items ahead of its consumer, in a thread that always ends."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

from fastarat.common.errors import WorkError

STALL_S = 60.0
"""Seconds without any progress after which whatever makes the batches is considered hung; a network's disk may take
half a minute to come back."""
_POLL_S = 0.2
_END_S = 8.0
"""what is being made has to end when nobody wants it any more"""

T = TypeVar("T")


class Watch:
    """Whether decoding goes on while someone waits for it; `progress()` counts what has been done.

    Time is counted by looks and not by a clock, which goes on while all of us stand still: after Ctrl-Z, in a frozen
    container, on a machine that is moved.
    """

    def __init__(self, progress: Callable[[], int], *, poll_s: float, stall_s: float):
        self.progress, self.poll_s, self.stall_s = progress, poll_s, stall_s
        self.last, self.waited = progress(), 0.0

    def check(self) -> None:
        """A look, after `poll_s` seconds. Raises `WorkError` if nothing has been done for `stall_s` seconds of them."""
        now = self.progress()
        self.waited = self.waited + self.poll_s if now == self.last else 0.0
        self.last = now
        if self.waited > self.stall_s:
            raise WorkError(
                f"no image was decoded for {self.stall_s:.0f} s: the disk or a decoder hangs; --resume goes on from "
                "the newest checkpoint"
            )


@dataclass(frozen=True)
class _End:
    """The last thing in the queue."""

    error: BaseException | None = None


class _Ahead(Thread, Generic[T]):
    """Puts items into a queue of limited length until they end, fail, or nobody wants them any more."""

    def __init__(self, items: Generator[T, None, None], ahead: int):
        super().__init__(daemon=True, name="fastarat-prefetch")  # one that hangs must not keep the process
        self.items, self.unwanted = items, Event()
        self.ready: Queue[T | _End] = Queue(ahead)
        self.num_made = 0

    def run(self) -> None:
        try:
            with closing(self.items):
                for item in self.items:
                    self.num_made += 1
                    if not self._put(item):
                        return
            self._put(_End())
        except BaseException as error:
            self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        while not self.unwanted.is_set():
            try:
                self.ready.put(item, timeout=_POLL_S)
                return True
            except Full:
                continue
        return False


def prefetch(
    items: Generator[T, None, None], ahead: int, *, progress: Callable[[], int] | None = None, stall_s: float = STALL_S
) -> Generator[T, None, None]:
    """The items of a generator, made up to `ahead` of them before they are asked for.

    An exception in it is raised here. Raises `WorkError` if an item is waited for and `progress()` (by default the
    number of items made) has not grown for `stall_s` seconds. Closing this ends the thread.
    """
    thread = _Ahead(items, ahead)
    thread.start()
    hangs = False
    try:
        while True:
            try:
                watch = Watch(progress or (lambda: thread.num_made), poll_s=_POLL_S, stall_s=stall_s)
                item = _next(thread, watch)
            except WorkError:
                hangs = True
                raise
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        thread.unwanted.set()
        if not hangs:
            thread.join(_END_S)


def _next(thread: _Ahead[T], watch: Watch) -> T | _End:
    while True:
        try:
            return thread.ready.get(timeout=_POLL_S)
        except Empty:
            watch.check()
