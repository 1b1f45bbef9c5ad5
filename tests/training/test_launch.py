"""What the processes of a launch find in their environment, and how many GPUs each of them needs."""

import json
import os
import signal
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.agent.server.api import WorkerSpec

from fastarat.common import processes
from fastarat.common.errors import WorkError
from fastarat.common.processes import AGAIN, LAUNCHER, join_ranks, num_seen, why_again
from fastarat.training import launch as launch_module
from fastarat.training.agent import Agent
from fastarat.training.launch import launch
from fastarat.training.meeting import meeting_of
from tests.helpers.unmeasured import UNMEASURED

SAYS = """
import json, os, sys
names = ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES")
open(f"{sys.argv[1]}/{os.environ['RANK']}", "w").write(json.dumps([os.environ.get(name) for name in names]))
"""


def found(folder: Path, monkeypatch, on_gpus: bool) -> list[list[str]]:
    """LOCAL_RANK and CUDA_VISIBLE_DEVICES of two processes in the place of ours."""

    def started(**settings):
        return WorkerSpec(**{**settings, "args": ("-c", SAYS, str(folder))})

    monkeypatch.setattr(launch_module, "WorkerSpec", started)
    given = dict.fromkeys((processes.LAUNCHER, "TORCH_CPP_LOG_LEVEL"), "1")
    for name, value in {**UNMEASURED, **given}.items():  # they run nothing of ours
        monkeypatch.setenv(name, value)
    assert launch(2, ["train"], 0, goes_on="", on_gpus=on_gpus) == 0
    return [json.loads((folder / str(rank)).read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1"]), ("5,3,1", ["5", "3"]), ("GPU-1a2b,MIG-3c4d", ["GPU-1a2b", "MIG-3c4d"])],
)
def test_each_process_sees_its_own_gpu_alone_as_the_first(tmp_path, monkeypatch, visible, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert found(tmp_path, monkeypatch, on_gpus=True) == [["0", name] for name in expected]


def test_processes_on_a_cpu_keep_what_hides_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert found(tmp_path, monkeypatch, on_gpus=False) == [["0", ""], ["1", ""]]


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_machine_that_comes_after_the_end_says_whether_the_run_is_finished(monkeypatch, capsys, is_finished):
    for name in (LAUNCHER, "TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "1")  # and nothing of this launch is left behind
    meeting = meeting_of(None, port=0)
    meeting.end(is_finished=is_finished)
    monkeypatch.setattr(launch_module, "meeting_of", lambda machines, port: meeting)
    if is_finished:
        assert launch(1, ["train"], goes_on="") == 0
        assert "the other machines have finished before this one came in" in capsys.readouterr().err
    else:
        with pytest.raises(WorkError, match="another machine has ended the run"):
            launch(1, ["train"], goes_on="go on so")


def test_a_launched_process_needs_the_gpus_up_to_its_own(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert num_seen(8) == 8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fastarat")
    for local_rank, needed in (("0", 1), ("5", 6)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert num_seen(8) == needed and num_seen(0) == 0


def test_a_task_of_srun_needs_to_see_its_own_gpu_alone(monkeypatch):
    """As with --gpus-per-task=1, where its number on the machine is the index of none."""
    place = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    monkeypatch.setattr(os, "environ", place | step)
    join_ranks()
    assert os.environ["LOCAL_RANK"] == "1" and num_seen(2) == 1 and num_seen(0) == 0


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, ""),
        ({"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_RESTART_COUNT": "0"}, ""),
        ({"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_RESTART_COUNT": "1"}, "torchrun has started the processes again"),
        # Of our own launcher, which counts lost machines apart, the word counts.
        ({"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_RESTART_COUNT": "1", LAUNCHER: "3"}, ""),
        ({"TORCHELASTIC_RUN_ID": "7", LAUNCHER: "3", AGAIN: "a machine comes in"}, "a machine comes in"),
    ],
)
def test_processes_know_why_they_start_again(monkeypatch, variables, why):
    monkeypatch.setattr(os, "environ", variables)
    assert why_again() == why


def test_processes_share_the_cores_that_are_left_to_them(monkeypatch):
    for name in ("OMP_NUM_THREADS", LAUNCHER, "TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6))  # of many more
    monkeypatch.setattr(Agent, "run", lambda agent: None)
    assert launch(2, ["train"], goes_on="") == 0 and os.environ["OMP_NUM_THREADS"] == "3"


def test_a_signal_that_is_passed_on_reaches_those_that_run_and_no_other():
    """The report takes minutes after the other processes have ended; their numbers may be anyone's by then."""
    ended, runs = Popen(["true"]), Popen(["sleep", "100"])
    ended.wait()
    agent = Agent.__new__(Agent)
    handlers = {rank: SimpleNamespace(proc=process) for rank, process in enumerate((ended, runs))}
    pids = {0: ended.pid, 1: runs.pid}
    agent._pcontext = SimpleNamespace(subprocess_handlers=handlers, pids=lambda: pids)  # type: ignore[assignment]
    agent.signal_processes(signal.SIGUSR1)
    assert runs.wait() == -signal.SIGUSR1
