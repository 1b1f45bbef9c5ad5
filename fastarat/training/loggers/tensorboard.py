"""TensorBoard's events, in the run's directory.

The file is written here, of TensorBoard's own records: its writer names the file by this machine.
"""

import os
import secrets
import time
from typing import Any

from fastarat.common.errors import WorkError
from fastarat.runs.run import Run


class TensorBoard:
    """Writes each epoch's numbers under `train/…` and `evaluation/…`."""

    def __init__(self, run: Run, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2, summary_pb2
        path = run.path / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            self.records = RecordWriter(path.open("xb"))
        except OSError as error:
            raise WorkError(f"cannot write {path}: {error.strerror}") from error
        self._add(step=first_step, file_version="brain.Event:2")
        # A run that goes on hides what an interrupted session wrote past its checkpoint.
        self._add(step=first_step, session_log=self.event.SessionLog(status=self.event.SessionLog.START))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers. Raises `WorkError` if the file cannot be written."""
        values = [self.summary.Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._add(step=step, summary=self.summary.Summary(value=values))

    def _add(self, **what: Any) -> None:
        event = self.event.Event(wall_time=time.time(), **what)
        try:
            self.records.write(event.SerializeToString())
            self.records.flush()
        except OSError as error:
            raise WorkError(
                f"cannot write TensorBoard's events: {error.strerror}; free some space, and --resume"
            ) from error

    def close(self, code: int) -> None:
        """End the file."""
        self.records.close()
