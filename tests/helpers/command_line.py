"""What the tests of the command line share: results, flags of tiny runs, programs in processes of their own."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastarat.training.loop import Loop
from tests.helpers.unmeasured import UNMEASURED

CHECKOUT = Path(__file__).parents[2]

# An epoch is four steps of 64 digits with the weakest attack: about 0.1 s. On every machine they compute the same. A
# report would take many times as long.
TINY = (
    *("--dtype", "fp32", "--compile", "eager", "--no-report"),
    *("--epochs", "2", "--num-train-images", "256", "--attack.steps", "1"),
    *("--evaluation.num-images", "50", "--evaluation.steps", "1"),
)
# As many steps of a quarter of the images, for tests that look at no accuracy.
ONE_EPOCH = (*TINY, "--epochs", "1", "--num-train-images", "64", "--batch", "16")


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The text of the one error line, which must be there, be the last, and be the only one."""
        lines = self.err.splitlines()
        assert [line.startswith("fastarat: error: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("fastarat: error: "), self.err
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("fastarat: error: ")

    @property
    def json(self) -> Any:
        """stdout, which must be JSON and nothing else."""
        return json.loads(self.out)


def start(
    *args: object,
    environment: dict[str, str] | None = None,
    measured: bool = False,
    within: Sequence[str] = (),
    **options: Any,
) -> subprocess.Popen:
    """Start `fastarat ARGS` in a process of its own, with these environment variables besides ours.

    `within`: a command that runs another one. `measured`: for coverage, for what no test runs in its own process; it
    takes a third longer and bears no signal.
    """
    # What is on it already stays: with true values the simulated GPU comes that way.
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [str(CHECKOUT), str(CHECKOUT / "kernels"), *before]))}
    coverage = {} if measured else UNMEASURED
    env = {**os.environ, **coverage, **paths, **(environment or {})}
    command = [*within, sys.executable, "-m", "fastarat", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{"env": env, **pipes, **options})


def finish(process: subprocess.Popen, timeout: float = 120) -> Result:
    """Wait for a process and return how it ended; one that hangs is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    if process.returncode:
        sys.stderr.write(err)  # pytest shows it whole where a test fails, and of an assertion's operands the ends
    return Result(process.returncode, out or "", err)


def wait_for(path: Path, process: subprocess.Popen | None = None, timeout: float = 120) -> None:
    """Wait until `path` exists; the process that makes it, if it is a child of ours, must still run."""
    end = time.monotonic() + timeout
    while not path.exists():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} has not come"
        time.sleep(0.02)


def wait_for_checkpoint(run: Path, process: subprocess.Popen, after: int = -1, timeout: float = 120) -> None:
    """Wait until a run has a checkpoint of a step beyond `after`; the process that trains it must still run."""
    end = time.monotonic() + timeout
    while all(int(path.stem.removeprefix("step-")) <= after for path in (run / "checkpoints").glob("step-*.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{run} has no checkpoint after step {after}"
        time.sleep(0.02)


def stop_after(
    patch: pytest.MonkeyPatch, steps: int, number: int = signal.SIGINT, then: str = "_between_steps"
) -> None:
    """Let this signal come to a training in this process during that step, or before this method of the loop's."""
    called = getattr(Loop, then)

    def stopping(loop: Loop) -> Any:
        if loop.training.step == steps:
            os.kill(os.getpid(), number)
        return called(loop)

    patch.setattr(Loop, then, stopping)


@contextmanager
def full_disk(size: int = 4096) -> Iterator[None]:
    """No file grows beyond `size` bytes: as on a disk that is full, each write fails with a reason."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def record(run: Path) -> dict[str, Any]:
    """What a run recorded of its sessions."""
    return json.loads((run / "record.json").read_text())


TIMES = ("seconds", "evaluation_seconds", "images_per_s", "joules")


def results_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` without times and speeds, which no two runs share."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics(run)]


def newest(run: Path) -> Path:
    """The newest checkpoint's file."""
    return max((run / "checkpoints").glob("step-*.pt"))


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds."""
    return torch.load(checkpoint, weights_only=True)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Nested values are equal, tensors bit by bit."""
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), f"{where} differs"
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_same(value, theirs[key], f"{where}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, f"{where}/{i}")
    else:
        assert ours == theirs, where


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs ended in the same bits: results, deployed weights, and all that the last checkpoint holds."""
    assert results_of(ours) == results_of(theirs)
    assert_same(load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors"), "model.safetensors")
    mine, other = state_of(newest(ours)), state_of(newest(theirs))
    for state in (mine, other):
        del state["metrics"], state["seconds"]
    assert_same(mine, other, "checkpoint")
