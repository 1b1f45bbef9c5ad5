"""A run's directory: configuration, metrics, record, checkpoints, deployable weights."""

import json
from pathlib import Path
from typing import IO, Any

from fastarat.checkpoint import load_checkpoint, newest_first, save_checkpoint
from fastarat.config import Config, load_config, to_json
from fastarat.errors import UserError, WorkError
from fastarat.files import append_line, lock, write_text

# What a snapshot keeps of a checkpoint.
SNAPSHOT = ("description", "fingerprint", "batch_norm", "step", "epoch", "model", "method", "average")


class Run:
    """`runs/NAME/`; its parts have the names of the design's contract."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.record_file = path / "record.json"
        self.checkpoints = path / "checkpoints"
        self.best_file = self.checkpoints / "best.pt"
        self.history = self.checkpoints / "history"
        self.weights_file = path / "model.safetensors"
        self._lock: IO[str] | None = None

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

    def lock(self) -> None:
        """Keep other processes from training in this directory, until this one ends."""
        self._lock = lock(self.path / ".lock")
        if self._lock is None:
            raise UserError(f"another process is training in {self.path}: wait for it, or end it")
        # Nobody else writes here now: what a killed process had begun to write is of no use.
        for begun in self.path.rglob(".*.tmp"):
            begun.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Let others train in this directory again."""
        if self._lock is not None:
            self._lock.close()

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

    def record_event(self, text: str) -> None:
        """Add what happened to the record of the session that runs."""
        record = json.loads(self.record_file.read_text())
        record["sessions"][-1].setdefault("events", []).append(text)
        write_text(self.record_file, json.dumps(record, indent=2) + "\n")

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

    def forget_from(self, step: int) -> Path | None:
        """Remove the checkpoints of `step` and later; returns the newest that is left, if any."""
        for path in newest_first(self.checkpoints):
            if int(path.stem.removeprefix("step-")) < step:
                return path
            path.unlink()
        return None

    def result(self) -> dict[str, Any] | None:
        """The evaluation of the deployed weights, with its epoch: the average's, the best, or the last."""
        lines = self.metrics()
        measured = [{"epoch": line["epoch"], **line["evaluation"]} for line in lines if "evaluation" in line]
        averages = [{"epoch": line["epoch"], **line["average"]} for line in lines if "average" in line]
        if self.config().num_validation_images:
            return max(averages + measured, key=lambda entry: entry["robust"], default=None)
        return next(reversed(averages or measured), None)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the best checkpoint."""
        save_checkpoint(self.best_file, state)

    def save_snapshot(self, state: dict[str, Any]) -> None:
        """Keep the weights after a finished epoch: of a checkpoint's state, what an analysis needs."""
        self.history.mkdir(exist_ok=True)
        snapshot = {name: state[name] for name in SNAPSHOT}
        save_checkpoint(self.history / f"epoch-{state['epoch'] - 1:06d}.pt", snapshot)

    def snapshots(self) -> dict[int, Path]:
        """The files of the snapshots by the epoch that each was taken after, in order."""
        return {int(path.stem.removeprefix("epoch-")): path for path in sorted(self.history.glob("epoch-*.pt"))}

    def forget_snapshots_after(self, epoch: int) -> None:
        """Remove the snapshots of later epochs: a run that goes on from before them takes them anew."""
        for later, path in self.snapshots().items():
            if later > epoch:
                path.unlink()

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
        text = self.metrics_file.read_text()
        # A line without its end was cut off by a crash; the checkpoint has it.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
