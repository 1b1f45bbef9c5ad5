"""Of two processes on simulated GPUs one fails or hangs alone: the other one ends soon, and each says why in a line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastarat.training.launching.causes import cause_of
from tests.helpers.simulated_gpu import counted_only
from tests.helpers.simulated_gpu import pytestmark as needs_simulated_gpu

pytestmark = [*needs_simulated_gpu, counted_only]

ROOT = Path(__file__).parents[2]
SMALL = ["--batch", "32", "--num-train-images", "160", "--evaluation.num-images", "20", "--evaluation.steps", "1"]
SMALL += ["--evaluation.num-clean-images", "20", "--attack.steps", "1", "--epochs", "1", "--gpus", "2"]
TRAIN = """
import os, sys
from fastarat.__main__ import main
code = main(["train", "digits-at", *sys.argv[1:]])
sys.stderr.flush()
os._exit(code)
"""
CHOSEN = """
from fastarat.training import train
from fastarat.training.choices import Choices
train.choose = lambda *_: Choices("cuda", "bf16", "{kernels}", "{compile}")
"""
BROKEN_KERNEL = """
import os
from dataclasses import replace
from fastarat.training.build import IMPLEMENTATIONS
def broken(*_):
    raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
if os.environ["RANK"] in "{ranks}":
    IMPLEMENTATIONS["triton"] = replace(IMPLEMENTATIONS["triton"], pgd_step=broken)
"""
HANGING = """
import os, time
from datetime import timedelta
from fastarat.training import loop
from fastarat.training.compiling.compiled import build_step
build_step.__kwdefaults__["backend"] = "eager"  # captured as it is traced, without inductor's minute
loop.LONGEST_STEP = timedelta(seconds=3)
between_steps = loop.Loop._between_steps
def hangs(self):
    if self.training.step == 3 and os.environ["RANK"] == "1":
        time.sleep(600)
    between_steps(self)
loop.Loop._between_steps = hangs
"""


def started(code: str, out: Path) -> list[subprocess.Popen]:
    """Two processes of one training, each of which runs `code` before. As under a launcher they say beside `out` why
    they fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    world |= {"SIMGPU_COUNT": "2", "SIMGPU_NCCL_SECONDS": "5", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code + TRAIN, *SMALL, "--out", str(out)]
    for rank in (0, 1):
        (out.parent / str(rank)).mkdir()
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | world | of_rank(rank, out.parent / str(rank) / "error.json"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


def of_rank(rank: int, said: Path) -> dict[str, str]:
    """Its environment; it says in the file why it fails."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_ERROR_FILE": str(said)}


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """The exit code of each, and what it said."""
    said = [process.communicate(timeout=600)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture
def none_left():
    """Ends the processes that a test leaves."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_kernel_that_fails_in_one_process_alone_ends_both_with_its_reason(tmp_path, none_left):
    code = CHOSEN.format(kernels="triton", compile="eager") + BROKEN_KERNEL.format(ranks="1")
    none_left += started(code, tmp_path / "run")
    (first, said), (second, _) = ends(none_left)
    assert (first, second) == (1, 1) and "another process has left the step in the middle" in said, said
    cause = cause_of({}, tmp_path)
    assert cause and cause.text.startswith("a Triton kernel failed (Triton Error [CUDA]: device kernel image is inv")


def test_a_kernel_that_fails_in_all_processes_gives_way_to_pytorchs_in_all(tmp_path, none_left):
    code = CHOSEN.format(kernels="triton", compile="eager") + BROKEN_KERNEL.format(ranks="01")
    none_left += started(code, tmp_path / "run")
    (first, said), (second, _) = ends(none_left)
    assert (first, second) == (0, 0), said
    assert "kernels: pytorch (Triton Error [CUDA]: device kernel image is invalid)" in said


def test_a_captured_step_waits_for_a_process_that_hangs_no_longer_than_an_eager_one(tmp_path, none_left):
    none_left += started(CHOSEN.format(kernels="pytorch", compile="graph") + HANGING, tmp_path / "run")
    _, said = none_left[0].communicate(timeout=600)
    assert none_left[0].returncode == 1 and "another process hangs" in said, said
    assert none_left[1].poll() is None
