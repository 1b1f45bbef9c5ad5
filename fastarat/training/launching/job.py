"""A training as a job of submitit: begun, stopped in time with a checkpoint, and gone on with."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NOTICE_S = 120
"""seconds before its end that a job is told of it: for the step and the checkpoint"""


class TrainingJob:
    """Called in each task of a job: `fastarat train ARGS`, or by what goes on with the run in `out` where it has begun.

    `args`, `again`: those of train, with `--out` and `--resume`. submitit pickles it, and asks it for a `checkpoint`
    before the job queues again.
    """

    def __init__(self, args: tuple[str, ...], again: tuple[str, ...], out: Path):
        self.args, self.again, self.out = args, again, out

    def __call__(self) -> None:
        """Train to the end. Raises `RuntimeError` if that fails; the log says why."""
        args = self.again if (self.out / "config.json").exists() else self.args
        # The end of a pipe is waited for, not the process: the wait for a process cannot be interrupted by another one,
        # as `checkpoint` has it. In a session of its own it does not get the signals that the cluster means for us.
        self._is_alive, held = os.pipe()
        command = [sys.executable, "-m", "fastarat", "train", *args]
        self._process = subprocess.Popen(command, pass_fds=(held,), start_new_session=True)
        os.close(held)
        code = self._end()
        if code > 128:  # all were stopped, and the first task queues the job again
            time.sleep(NOTICE_S)
        if code:
            raise RuntimeError(f"fastarat train ended with exit code {code}")

    def checkpoint(self) -> Any:
        """Stop after the step, with a checkpoint, on all machines; what the job does when it has queued again."""
        from submitit.helpers import DelayedSubmission

        self._process.terminate()
        self._end()
        return DelayedSubmission(TrainingJob(self.args, self.again, self.out))

    def _end(self) -> int:
        os.read(self._is_alive, 1)
        return self._process.wait()
