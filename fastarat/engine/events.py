"""TensorBoard events of a run, where the `tensorboard` package is installed."""

import importlib.util
from pathlib import Path
from typing import Any


class Events:
    """Writes each epoch's numbers under `train/…` and `evaluation/…`; does nothing without TensorBoard."""

    def __init__(self, path: Path, first_step: int, enabled: bool):
        self.writer = None
        if enabled and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # A run that goes on hides what an interrupted session wrote past its checkpoint.
            self.writer = SummaryWriter(str(path), purge_step=first_step)

    def write(self, entry: dict[str, Any]) -> None:
        """Write a line of `metrics.jsonl`."""
        if self.writer is None:
            return
        numbers = {"learning_rate": entry["learning_rate"], "images_per_s": entry["images_per_s"]}
        for group in ("train", "evaluation"):
            numbers |= {f"{group}/{name}": value for name, value in entry.get(group, {}).items()}
        for name, value in numbers.items():
            if isinstance(value, float):
                self.writer.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Flush and end the file."""
        if self.writer is not None:
            self.writer.close()
