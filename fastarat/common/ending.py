"""How a command ends: one line for whatever went wrong, and an exit code.

0; 2 for what could be known before work started; 1 for a failure in work; 128 and the signal's number after a signal.
"""

import errno
import io
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from fastarat.common.console import forget, notice, one_line
from fastarat.common.errors import Interrupted, UserError, WorkError
from fastarat.common.processes import is_first, say_to_launcher
from fastarat.common.signals import answered, number_of, stop

OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""errors of writing, or of reading (EIO), which name no file where it is one that was open before"""

UNFORESEEN = "(unforeseen: "
"""what stands in the line for an error that nobody foresaw"""


def ended(name: str, work: Callable[[], int]) -> int:
    """Do the work of the command `name`; returns its exit code, or that of what ended it, which is then said."""
    with _streams(), answered(stop):
        code = 0
        try:
            try:
                code = _done(name, work)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has gone: `fastarat recipes | head`
            forget(sys.stdout)
        except OSError as error:  # it goes to a file, and the disk is full
            forget(sys.stdout)
            return code or _fail(name, _no_output(error), 1)
        except KeyboardInterrupt as error:  # it came while the end was being said
            return 128 + number_of(error)
        return code


def _done(name: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except UserError as error:
        return _fail(name, error, 2)
    except WorkError as error:
        return _fail(name, error, 1)
    except Interrupted as error:
        if is_first():
            notice(str(error))
        return 128 + error.number
    except KeyboardInterrupt as error:
        number = number_of(error)
        if is_first():
            notice(f"{name}: interrupted ({signal.Signals(number).name})")
        return 128 + number
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader(sys.stdout):
            raise
        if error.filename is not None and error.strerror:
            return _fail(name, f"{error.filename}: {error.strerror}", 1)
        if error.errno in OF_A_DISK:
            return _fail(name, _no_output(error), 1)
        return _fail(name, _unforeseen(error), 1)
    except Exception as error:  # the last wall: whatever a command did not foresee is still one line
        return _fail(name, _unforeseen(error), 1)


def _fail(name: str, text: object, code: int) -> int:
    line = one_line(text)
    # Of several processes that meet the same error one says so: their launcher, or the first.
    if not say_to_launcher(line, code) and is_first():
        notice(f"{name}: error: {line}")
    return code


def _no_output(error: OSError) -> str:
    if error.errno == errno.EIO:  # it may have been a read
        return f"a disk or a terminal has failed: {error.strerror}; look into the system's log, or take another"
    return f"cannot write the output: {error.strerror}; free some space, or send it elsewhere"


def _unforeseen(error: Exception) -> str:
    """What is said of an error that nobody foresaw; the rest goes into a file, which its owner alone may read."""
    try:
        said = str(error)
    except Exception:  # its own method is a stranger's
        said = ""
    try:
        descriptor, path = tempfile.mkstemp(prefix="fastarat-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        where = f"the traceback is in {path}"
    except OSError as failure:
        where = f"the traceback could not be written ({failure.strerror})"
    what = ": ".join(filter(None, [type(error).__name__, one_line(said, 500)]))
    return f"{what} {UNFORESEEN}{where}; please report it)"


@contextmanager
def _streams() -> Iterator[None]:
    """Standard streams that are there, whoever started us, and that write what they can."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # a file opened later would get its number, and our output
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without Unicode gets a '?' here and there
            stream.reconfigure(errors="replace")
    with Path(os.devnull).open("w") as null, redirect_stdout(sys.stdout or null), redirect_stderr(sys.stderr or null):
        yield


def _has_no_reader(stream: TextIO) -> bool:
    """Whether `stream` is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, TypeError, ValueError):  # no file
        return False
