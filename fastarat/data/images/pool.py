"""One function over many items, in order, on every core."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from threading import Thread
from typing import TypeVar

from fastarat.common.errors import WorkError
from fastarat.common.processes import num_cores

BATCH = 64  # images handed to a process at a time; fewer than two batches are worked on right here
T = TypeVar("T")
R = TypeVar("R")


def in_order(
    work: Callable[[T], R], items: Iterable[T], count: int, *, processes: int | None = None, batch: int | None = None
) -> Iterator[R]:
    """`work` of each of `count` items, in order, by `processes` processes (None: one a core), each given `batch` items
    at a time (None: as many as suit images).

    They are spawned, so `work` can be pickled and a script needs its `if __name__ == "__main__":`.
    Raises `WorkError` if a process dies.
    """
    batch = batch or BATCH
    processes = min(processes or num_cores(), count // batch)
    if processes < 2:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=live_with_parent)
    try:
        yield from _results(pool, work, iter(items), batch, ahead=3 * processes)
    except BrokenProcessPool as error:
        raise WorkError(
            "a process that works on images died: out of memory, or a script without "
            "'if __name__ == \"__main__\":' around its work"
        ) from error
    except BaseException:  # Ctrl-C among them, or a caller that wants no more: nobody waits for what is in work
        for process in set(multiprocessing.active_children()).difference(others):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, work: Callable[[T], R], items: Iterator[T], batch: int, ahead: int
) -> Iterator[R]:
    """`Executor.map` would read every image into memory at once; this stays `ahead` batches in front."""
    pending: deque[Future[list[R]]] = deque()
    while some := list(islice(items, batch)):
        with _answered_by_the_parent_alone():  # which starts processes
            pending.append(pool.submit(_work_on, work, some))
        if len(pending) == ahead:
            yield from pending.popleft().result()
    while pending:
        yield from pending.popleft().result()


def _work_on(work: Callable[[T], R], some: list[T]) -> list[R]:
    return [work(item) for item in some]


@contextmanager
def _answered_by_the_parent_alone() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal. One that is started in this block never hears of it, not even while
    Python starts in it; SIGTERM it hears, by which a pool ends those that are left of a broken one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with_parent() -> None:
    """Let this process end when its parent does, even if that is killed: it would wait for work forever."""
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
