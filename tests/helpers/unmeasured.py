"""What runs without coverage: the environment of a process, and a part of a test.

A process that a test's signal interrupts wherever it happens to be runs without coverage: an exception that a signal's
handler raises may come in the midst of coverage's own code, between taking its lock and giving it back, and the process
would then wait for the lock for ever.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


@contextmanager
def uncounted() -> Iterator[None]:
    """Without coverage, in xdist's workers, too, where pytest-cov starts it twice."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
