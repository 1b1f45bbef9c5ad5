"""Sessions of a training, each in a process of its own that begins with Python and torch loaded already: forked from a
server that has loaded them, and has done nothing else."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

PRELOADED = [
    *("bench.soak.__main__", "fastarat.__main__", "fastarat.commands.train"),
    *("fastarat.training.train", "fastarat.reports.report"),
]


class Sessions:
    """Begins sessions. `log`: the file that holds what the newest one said."""

    def __init__(self, log: Path):
        self.log = log
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, *args: object) -> ForkServerProcess:
        """Begin `fastarat ARGS`."""
        process = self._context.Process(target=_session, args=([*map(str, args)], str(self.log)))
        process.start()
        return process


def _session(args: list[str], log: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    from fastarat.__main__ import main

    sys.exit(main(args))
