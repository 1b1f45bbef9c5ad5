"""A run's directory: configuration, metrics, record, checkpoints, deployable weights."""

import errno
import json
import os
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from fastarat.common.errors import UserError, WorkError
from fastarat.common.files import append_line, make_folder, remove_unfinished, require_file, write_text
from fastarat.common.json_files import parse_json, read_json
from fastarat.common.locks import lock
from fastarat.config import Config, load_config, to_json
from fastarat.data.formats.find import place_of, require_apart
from fastarat.methods import registry  # noqa: F401 (a method's settings are known by name once its file is imported)
from fastarat.runs.checkpoint import newest_first, numbered, save_checkpoint
from fastarat.runs.metrics import are_comparable, attested, is_line
from fastarat.runs.writer import Writer

# What a shell or a scheduler may have begun to write into a new run's directory.
LOGS = (".log", ".out", ".err", ".txt")
# What a snapshot keeps of a checkpoint.
SNAPSHOT = ("description", "fingerprint", "batch_norm", "step", "epoch", "model", "method", "average")
# What may differ when a run goes on: where and how long it runs, what is kept of it, and what a loss that is not finite
# asks for; see `fixed_on_resume` for parts of others.
FREE_ON_RESUME = (
    *("device", "nodes", "gpus", "procs", "epochs", "checkpoint", "evaluation"),
    *("optimizer", "dtype", "loader", "data", "compile", "kernels"),
)
MOST_DIGITS = 18


class Run:
    """`runs/NAME/`; docs/training.md lists its files."""

    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.json"
        self.metrics_file = path / "metrics.jsonl"
        self.record_file = path / "record.json"
        self.checkpoints = path / "checkpoints"
        self.best_file = self.checkpoints / "best.pt"
        self.history = self.checkpoints / "history"
        self.weights_file = path / "model.safetensors"
        self.lock_file = path / ".lock"
        self._lock: IO[str] | None = None
        self._writer = Writer()
        self._sessions: list[dict[str, Any]] = []

    def create(self, config: Config, environment: dict[str, Any]) -> None:
        """Make the directory, and `lock` it. Raises `UserError` as `check_free` does."""
        self.check_free(config)
        try:
            make_folder(self.checkpoints)
        except OSError as error:
            raise self._cannot_make(error) from error
        self.lock()
        self._require_room()  # another process may have made its run here since
        self.write_config(config)  # first: a run that is killed here can be resumed
        self.write_record(environment)

    def check_free(self, config: Config) -> None:
        """Raise `UserError` if a run is there or anything else but logs, if it lies in the run's data set, or cannot be
        made."""
        for data in filter(None, (config.data, config.extra.data)):
            require_apart(self.path, data)
        try:
            self._require_room()
            path = self.path.absolute()
            place = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
            reason = errno.EACCES if place.is_dir() else errno.ENOTDIR
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise OSError(reason, os.strerror(reason))
        except OSError as error:
            raise self._cannot_make(error) from error

    def _cannot_make(self, error: OSError) -> UserError:
        return UserError(f"cannot make the run directory {self.path}: {error.strerror}; give another --out")

    def _require_room(self) -> None:
        """Raise `UserError` where a new run would meet another one, or files that are none of its own."""
        if self.config_file.exists():
            raise UserError(f"{self.path} holds a run already: give --resume to go on with it, or another --out")
        if taken := sorted(path.name for path in self.path.glob("[!.]*") if not self._may_be_there(path)):
            raise UserError(f"{self.path} holds {taken[0]} and is no run: give another --out")

    def _may_be_there(self, path: Path) -> bool:
        """Whether a new run's directory may have this in it: a log, or what a killed run had begun with."""
        if path == self.checkpoints:
            return path.is_dir() and not any(path.iterdir())
        if path.name == "lost+found":  # of a disk that is mounted here
            return True
        return path.suffix in LOGS and path.is_file() and not path.is_symlink()

    def lock(self) -> None:
        """Keep other processes from training in this directory, until this one ends. Raises `UserError` if one does."""
        try:
            self._lock = lock(self.lock_file)
        except OSError as error:
            raise UserError(f"cannot lock {self.lock_file}: {error.strerror}; give a directory to write to") from error
        if self._lock is None:
            raise UserError(f"another process is training in {self.path}: wait for it, or end it")
        # Nobody else trains here now: what a killed process had begun to write is of no use.
        for folder in (self.path, self.checkpoints, self.history):
            remove_unfinished(folder)

    def unlock(self) -> None:
        """Let others train in this directory again, when all that was begun is written."""
        self._writer.close()
        if self._lock is not None:
            self._lock.close()

    def write_record(self, environment: dict[str, Any]) -> None:
        """Write `record.json`; a resumed run keeps its earlier sessions'. Raises `UserError` if it cannot."""
        self._sessions = [*self.sessions(), environment]
        try:
            self._write_sessions()
        except WorkError as error:
            raise UserError(str(error)) from error

    def last_session(self) -> dict[str, Any] | None:
        """What was recorded of the session that trained last; None if nothing was. Raises `UserError` for a damaged
        record."""
        return next(reversed(self.sessions()), None)

    def sessions(self) -> list[dict[str, Any]]:
        """What was recorded of each session, in their order. Raises `UserError` for a damaged record."""
        if not os.path.lexists(self.record_file):
            return []
        fix = "move it away, and --resume writes a new one"
        try:
            record = read_json(self.record_file)
        except UserError as error:
            raise UserError(f"{error}: {fix}") from error
        sessions = record.get("sessions") if isinstance(record, dict) else None
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            raise UserError(f"{self.record_file} is damaged: {fix}")
        return sessions

    def _write_sessions(self) -> None:
        write_text(self.record_file, json.dumps({"sessions": self._sessions}, indent=2) + "\n")

    def has_test_images(self) -> bool:
        """Whether there are test images beside those of the session that runs."""
        return self._sessions[-1]["data"]["test_images"] > 0

    def record_choices(self, **chosen: str | tuple[str, ...] | int | None) -> None:
        """Write anew what the session that runs computes with, and its list of choices with it."""
        self._sessions[-1].update(chosen)
        self._write_sessions()

    def record_event(self, text: str) -> None:
        """Add what happened to the record of the session that runs."""
        self._sessions[-1].setdefault("events", []).append(text)
        self._write_sessions()

    def config(self) -> Config:
        """The configuration. Raises `UserError` if this is no run, and as `load_config` does."""
        if not os.path.lexists(self.config_file):
            raise UserError(f"{self.path} is no run directory: it has no config.json")
        return load_config(self.config_file)

    def write_config(self, config: Config) -> None:
        """Write `config.json`: what the run was started, or goes on, with; images by their whole path."""
        write_text(self.config_file, to_json(settled(config)))

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(newest_first(self.checkpoints))

    def save(self, state: dict[str, Any], keep: int) -> None:
        """Write a checkpoint in the background, then forget all but the newest `keep`.

        As `save_best` and `save_snapshot` do, it waits for what was written before, and raises what went wrong with
        that.
        """
        self._writer.write(partial(self._save, keep), state)

    def _save(self, keep: int, state: dict[str, Any]) -> None:
        save_checkpoint(self.checkpoints / f"step-{state['step']:09d}.pt", state)
        for old in newest_first(self.checkpoints)[keep:]:
            old.unlink()

    def forget_from(self, step: int) -> Path | None:
        """Remove the checkpoints of `step` and later; returns the newest that is left, if any."""
        self.finish_writing()
        for path in newest_first(self.checkpoints):
            if int(path.stem.removeprefix("step-")) < step:
                return path
            path.unlink()
        return None

    def result(self) -> dict[str, Any] | None:
        """The evaluation of the deployed weights, with its epoch: the average's, the best (`attested`) of those made as
        the last one was, or the last.

        Raises as `metrics` does.
        """
        lines = self.metrics()
        measured = [{"epoch": line["epoch"], **line["evaluation"]} for line in lines if "evaluation" in line]
        averages = [{"epoch": line["epoch"], **line["average"]} for line in lines if "average" in line]
        if self.config().num_validation_images:
            found = averages + measured
            return max((one for one in found if are_comparable(one, found[-1])), key=attested, default=None)
        return next(reversed(averages or measured), None)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write the best checkpoint in the background."""
        self._writer.write(partial(save_checkpoint, self.best_file), state)

    def save_snapshot(self, state: dict[str, Any]) -> None:
        """Keep the weights after a finished epoch in the background: what an analysis needs of a state."""
        self.history.mkdir(exist_ok=True)
        snapshot = {name: state[name] for name in SNAPSHOT}
        file = self.history / f"epoch-{state['epoch'] - 1:06d}.pt"
        self._writer.write(partial(save_checkpoint, file), snapshot)

    def is_writing(self) -> bool:
        """Whether a checkpoint is not on disk yet. Raises what went wrong with it."""
        return self._writer.is_writing

    def finish_writing(self) -> None:
        """Wait until all checkpoints are on disk. Raises what went wrong."""
        self._writer.wait()

    def snapshots(self) -> dict[int, Path]:
        """The files of the snapshots by the epoch that each was taken after, in order."""
        return numbered(self.history, "epoch")

    def forget_snapshots_after(self, epoch: int) -> None:
        """Remove the snapshots of later epochs: a run that goes on from before them takes them anew."""
        for later, path in self.snapshots().items():
            if later > epoch:
                path.unlink()

    def checkpoint(self, which: str = "last") -> Path:
        """The file of a checkpoint: `last`, `best`, or a step number. Raises `UserError` if it is not there."""
        steps = numbered(self.checkpoints, "step")
        if which == "best" and os.path.lexists(self.best_file):
            return self.best_file
        if which == "last" and steps:
            return steps[max(steps)]
        asked = int(which) if which.isascii() and which.isdecimal() and len(which) <= MOST_DIGITS else None
        if asked in steps:
            return steps[asked]
        there = ", ".join(map(str, reversed(steps)))
        best = " and best" if os.path.lexists(self.best_file) else ""
        raise UserError(f"{self.path} has no checkpoint {which[:40]!r}; it has {there or 'none'}{best}")

    def log(self, entry: dict[str, Any]) -> None:
        """Append an epoch's line to `metrics.jsonl`."""
        append_line(self.metrics_file, entry)

    def restore_metrics(self, metrics: list[dict[str, Any]]) -> None:
        """Make `metrics.jsonl` hold just these lines: what a resumed run goes on from."""
        write_text(self.metrics_file, "".join(json.dumps(entry) + "\n" for entry in metrics))

    def has_metrics(self) -> bool:
        """Whether an epoch's line is there, readable or not."""
        return self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`. Raises `UserError` for a file that no training has written."""
        if not os.path.lexists(self.metrics_file):
            return []
        require_file(self.metrics_file)
        try:
            text = self.metrics_file.read_text(encoding="utf-8")
            # A line without its end was cut off by a crash; the checkpoint has it.
            lines = [parse_json(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        except OSError as error:
            raise UserError(f"cannot read {self.metrics_file}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{self.metrics_file} is damaged ({error}): --resume writes it anew") from error
        if not all(map(is_line, lines)):
            raise UserError(f"{self.metrics_file} is damaged: --resume writes it anew")
        return lines


def fixed_on_resume(config: Config) -> dict[str, Any]:
    """The settings that may not differ when a run goes on, by their names.

    Where images lie and what decodes them may: fingerprints tell whether they are the same. The optimizer may not be
    another, whose momenta mean something else.
    """
    loading, extra = replace(config.loading, workers=0, decode="cpu"), replace(config.extra, data=None)
    config = replace(config.resolved(), loading=loading, extra=extra)
    named = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in FREE_ON_RESUME}
    return {**named, "optimizer.name": config.optimizer.name}


def settled(config: Config) -> Config:
    """`config` with the whole paths of its images, so that a run finds them from any folder, and its sizes as numbers:
    those of a run stay whatever the defaults become."""
    config = config.resolved()
    extra = config.extra.data and place_of(config.extra.data)
    return replace(config, data=place_of(config.data), extra=replace(config.extra, data=extra))
