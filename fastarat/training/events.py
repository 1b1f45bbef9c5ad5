"""TensorBoard events of a run, where the `tensorboard` package is installed."""

import importlib.util
import os
import secrets
import time
from pathlib import Path
from typing import Any

from fastarat.common.errors import WorkError


class Events:
    """Writes each epoch's numbers under `train/…` and `evaluation/…`; does nothing without TensorBoard.

    The file is written here, of TensorBoard's own records: its writer names the file by this machine.
    """

    def __init__(self, path: Path, first_step: int, enabled: bool):
        self.records = None
        self.event: Any = None
        self.summary: Any = None
        if enabled and importlib.util.find_spec("tensorboard"):
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter

            self.event, self.summary = event_pb2, summary_pb2
            name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}.{secrets.token_hex(4)}"
            try:
                self.records = RecordWriter((path / name).open("xb"))
            except OSError as e:
                raise WorkError(f"cannot write {path / name}: {e.strerror}") from None
            self._add(step=first_step, file_version="brain.Event:2")
            # A run that goes on hides what an interrupted session wrote past its checkpoint.
            self._add(step=first_step, session_log=self.event.SessionLog(status=self.event.SessionLog.START))

    def write(self, entry: dict[str, Any]) -> None:
        """Write a line of `metrics.jsonl`."""
        if self.records is None:
            return
        numbers = {"learning_rate": entry["learning_rate"], "images_per_s": entry["images_per_s"]}
        for group in ("train", "evaluation"):
            numbers |= {f"{group}/{name}": value for name, value in entry.get(group, {}).items()}
        floats = {tag: number for tag, number in numbers.items() if isinstance(number, float)}
        values = [self.summary.Summary.Value(tag=tag, simple_value=number) for tag, number in floats.items()]
        self._add(step=entry["step"], summary=self.summary.Summary(value=values))

    def _add(self, **what: Any) -> None:
        assert self.records is not None
        event = self.event.Event(wall_time=time.time(), **what)
        try:
            self.records.write(event.SerializeToString())
            self.records.flush()
        except OSError as e:
            raise WorkError(f"cannot write TensorBoard's events: {e.strerror}; free some space, and --resume") from None

    def close(self) -> None:
        """End the file."""
        if self.records is not None:
            self.records.close()
