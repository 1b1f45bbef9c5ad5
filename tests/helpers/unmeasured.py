"""What runs without coverage: the environment of a process, a whole test, and calls of a library.

A process that a test's signal interrupts wherever it happens to be runs without coverage: an exception that a signal's
handler raises may come in the midst of coverage's own code, between taking its lock and giving it back, and the process
would then wait for the lock for ever.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

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


def uncounted_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """A library's function, each call of which runs without coverage; what called it is counted on.

    Coverage keeps a stack of the calls that it saw begin: it has to see this one end, too.
    """

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **options)
        finally:
            sys.settrace(tracer)
            sys._getframe().f_trace = tracer

    return called
