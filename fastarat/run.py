"""A run's directory: configuration, metrics, record, checkpoints, deployable weights."""

import json
from pathlib import Path
from typing import Any

from fastarat.checkpoint import load_checkpoint, newest_first, save_checkpoint
from fastarat.config import Config, load_config, to_json
from fastarat.errors import UserError, WorkError
from fastarat.files import append_line, write_text


class Run:
    """`runs/NAME/`; its parts have the names of the design's contract."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.record_file = path / "record.json"
        self.checkpoints = path / "checkpoints"
        self.best_file = self.checkpoints / "best.pt"
        self.weights_file = path / "model.safetensors"

    def create(self, config: Config, environment: dict[str, Any]) -> None:
        """Make the directory. Raises `UserError` if a run is there already or it cannot be written."""
        if self.config_file.exists():
            raise UserError(f"{self.path} holds a run already: give --resume to go on with it, or another --out")
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the run directory {self.path}: {e.strerror}; give another --out") from None
        self.write_record(environment)
        self.write_config(config)

    def write_record(self, environment: dict[str, Any]) -> None:
        """Write `record.json`; a resumed run keeps what its earlier sessions recorded."""
        earlier = []
        try:
            if self.record_file.exists():
                earlier = json.loads(self.record_file.read_text())["sessions"]
            write_text(self.record_file, json.dumps({"sessions": [*earlier, environment]}, indent=2) + "\n")
        except WorkError as e:
            raise UserError(str(e)) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{self.record_file} is damaged: move it away, and --resume writes a new one") from None

    def config(self) -> Config:
        """The configuration. Raises `UserError` if this is no run."""
        if not self.config_file.exists():
            raise UserError(f"{self.path} is no run directory: it has no config.json")
        return load_config(self.config_file)

    def write_config(self, config: Config) -> None:
        """Write `config.json`: what the run was started, or goes on, with."""
        write_text(self.config_file, to_json(config))

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(newest_first(self.checkpoints))

    def save(self, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, then forget all but the newest `keep`."""
        save_checkpoint(self.checkpoints / f"step-{state['step']:09d}.pt", state)
        for old in newest_first(self.checkpoints)[keep:]:
            old.unlink()

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the best checkpoint."""
        save_checkpoint(self.best_file, state)

    def checkpoint(self, which: str = "last") -> Path:
        """The file of a checkpoint: `last`, `best`, or a step number."""
        steps = newest_first(self.checkpoints)
        if which == "best" and self.best_file.exists():
            return self.best_file
        if which == "last" and steps:
            return steps[0]
        found = self.checkpoints / f"step-{int(which):09d}.pt" if which.isdecimal() else None
        if found and found.exists():
            return found
        there = ", ".join(str(int(path.stem.removeprefix("step-"))) for path in steps)
        best = " and best" if self.best_file.exists() else ""
        raise UserError(f"{self.path} has no checkpoint {which!r}; it has {there or 'none'}{best}")

    def load_newest(self) -> tuple[dict[str, Any], Path]:
        """The newest checkpoint, and its file."""
        path = self.checkpoint("last")
        return load_checkpoint(path), path

    def log(self, entry: dict[str, Any]) -> None:
        """Append an epoch's line to `metrics.jsonl`."""
        append_line(self.metrics_file, entry)

    def restore_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Make `metrics.jsonl` hold just these lines: what a resumed run goes on from."""
        write_text(self.metrics_file, "".join(json.dumps(entry) + "\n" for entry in metrics))

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]
