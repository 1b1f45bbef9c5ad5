"""Batches are made ahead in a thread that ends with its consumer."""

import itertools
import threading
from collections.abc import Generator
from queue import Full, Queue

import pytest

from fastarat.common.errors import WorkError
from fastarat.data.loading.decoders import prefetch as module
from fastarat.data.loading.decoders.prefetch import Watch, prefetch
from tests.helpers.small_sets import one_line


def threads() -> set[threading.Thread]:
    """Of this module's: other tests' may be ending meanwhile."""
    return {thread for thread in threading.enumerate() if thread.name == "fastarat-prefetch"}


def test_items_come_in_order_and_the_thread_ends_with_them():
    before = threads()
    assert list(prefetch((i for i in range(50)), ahead=3)) == list(range(50))
    assert threads() == before


def test_no_more_is_made_than_is_asked_for_and_a_few_ahead(monkeypatch):
    made, fifth, is_full = [], threading.Event(), threading.Event()

    class Noted(Queue):
        def put(self, item, timeout):
            try:
                super().put(item, timeout=timeout)
            except Full:
                is_full.set()
                raise

    def items() -> Generator[int, None, None]:
        for i in range(1000):
            made.append(i)
            if len(made) == 5:
                is_full.clear()  # what was full before the first item was taken
                fifth.set()
            yield i

    monkeypatch.setattr(module, "Queue", Noted)
    ahead = prefetch(items(), ahead=3)
    assert next(ahead) == 0
    assert fifth.wait(60) and is_full.wait(60)
    assert made == [0, 1, 2, 3, 4]  # one taken, three waiting, one in the thread's hand
    ahead.close()


def test_stopping_early_ends_the_thread_and_closes_what_it_ran():
    before, closed = threads(), []

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    ahead = prefetch(items(), ahead=2)
    next(ahead)
    assert threads() != before
    ahead.close()
    assert threads() == before and closed == [True]


def test_an_exception_in_the_thread_is_raised_where_the_item_is_wanted():
    def items() -> Generator[int, None, None]:
        yield 1
        raise WorkError("image 7 cannot be decoded")

    ahead = prefetch(items(), ahead=2)
    assert next(ahead) == 1
    with pytest.raises(WorkError, match="image 7"):
        next(ahead)


def test_what_hangs_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "_POLL_S", 0.05)
    release = threading.Event()

    def items() -> Generator[int, None, None]:
        yield 1
        release.wait(20)
        yield 2

    hanging = prefetch(items(), ahead=1, stall_s=0.1)
    assert next(hanging) == 1
    with pytest.raises(WorkError) as error:
        next(hanging)
    assert "hangs" in one_line(error)
    release.set()


def test_looks_without_progress_count_and_a_clock_that_went_on_does_not(monkeypatch):
    """As after Ctrl-Z and fg, which stop whoever decodes and whoever looks."""
    clock, done = itertools.count(0, 1000), [0]
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    watch = Watch(lambda: done[0], poll_s=2.0, stall_s=6.0)
    for image in range(3):
        done[0] = image + 1
        for _ in range(4):  # the first sees the image
            watch.check()
    with pytest.raises(WorkError, match="no image was decoded for 6 s"):
        watch.check()
