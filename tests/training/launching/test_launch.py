"""What the processes of a launch find in their environment, and how many GPUs each of them needs."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec

from fastarat.__main__ import main
from fastarat.commands.train import _as_started, parse_arguments
from fastarat.common import processes
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.errors import UserError, WorkError
from fastarat.common.processes import AGAIN, LAUNCHER, is_first_here, join_ranks, num_seen, why_again
from fastarat.config.data import LoadingConfig
from fastarat.data.loading.build import num_workers
from fastarat.training.choices import choose_device
from fastarat.training.launching import launch as launch_module
from fastarat.training.launching.agent import Agent
from fastarat.training.launching.launch import launch
from fastarat.training.launching.meeting import Machines, meeting_of
from tests.helpers.meetings import small
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


@pytest.mark.parametrize("came_late", [True, False])
@pytest.mark.parametrize("code", [1, 2], ids=["a failure at work", "what can be known before"])
def test_a_machine_that_came_late_and_cannot_take_part_leaves_the_run_to_the_others(
    tmp_path, monkeypatch, came_late, code
):
    """Found out by all from the start, or in work, it ends the run for all."""
    for name in (LAUNCHER, "TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    fails = f"""
import sys
from fastarat.common.processes import say_to_launcher
say_to_launcher("process 1 finds other images", {code})
sys.exit({code})
"""
    (tmp_path / "sitecustomize.py").write_text(fails)
    meeting, ends = meeting_of(None, port=0), []
    monkeypatch.setattr(meeting, "leave", lambda: ends.append("leaves"))
    monkeypatch.setattr(meeting, "end", lambda is_finished: ends.append("ends"))
    meeting.came_late, meeting._met = came_late, frozenset({meeting._this_node})  # it has met others before
    monkeypatch.setattr(launch_module, "meeting_of", lambda machines, port: meeting)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    with pytest.raises(UserError if code == 2 else WorkError, match="process 1 finds other images"):
        launch(1, ["train"], goes_on="", max_restarts=3)
    assert ends == ["leaves" if came_late and code == 2 else "ends"]
    meeting.shutdown()


def test_a_launch_that_is_refused_leaves_this_process_as_it_was(monkeypatch):
    monkeypatch.delenv(LAUNCHER, raising=False)
    with pytest.raises(UserError, match="--port 70000 is no port"):
        launch(2, ["train"], port=70000, goes_on="")
    with pytest.raises(UserError, match="no way leads there"):
        launch(2, ["train"], machines=Machines(2, 2, "no.such.machine.invalid:29500"), goes_on="")
    assert LAUNCHER not in os.environ


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


@pytest.mark.parametrize("ignored", [False, True], ids=["on a terminal", "under nohup"])
def test_the_launcher_answers_sighup_but_where_nohup_has_it_ignored(monkeypatch, ignored):
    held = {}

    def started(agent):
        names = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"].split(",")
        held.update(names=names, args=agent.get_worker_group().spec.args)

    monkeypatch.setattr(Agent, "run", started)
    for name in (processes.LAUNCHER, "TORCH_CPP_LOG_LEVEL", "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert launch(2, ["train"], 0, goes_on="") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("SIGHUP" in held["names"]) is not ignored and {"SIGINT", "SIGTERM", "SIGQUIT"} < {*held["names"], "SIGHUP"}
    assert held["args"][-1] == "train"


def started_by_another(monkeypatch, world: int, here: int) -> None:
    """As torchrun starts processes, on several machines."""
    values = {
        "TORCHELASTIC_RUN_ID": "other",
        "RANK": "0",
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": here,
        "LOCAL_RANK": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv(LAUNCHER, raising=False)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--procs", "2", "--out", "run"),
            "one of 16 processes that a launcher started, and the settings say 2",
        ),
        (("--nodes", "2", "--procs", "4"), "and the settings say 8: leave --nodes, --gpus and --procs out"),
        (
            ("--max-restarts", "3", "--batch", "60"),
            "--max-restarts is for fastarat's own launcher, and another one has started",
        ),
        (("--nodes", "2:4", "--batch", "60"), "--nodes LEAST:MOST is for fastarat's own launcher"),
        (("--nodes", "2", "--rendezvous", "a:1", "--batch", "60"), "--rendezvous is for fastarat's own launcher"),
        (("--port", "29501", "--batch", "60"), "--port is for fastarat's own launcher"),
        (("--batch", "60"), "batch 60 does not divide among 16 processes"),
    ],
)
def test_another_launcher_s_processes_are_what_the_settings_say(tmp_path, monkeypatch, capsys, flags, says):
    started_by_another(monkeypatch, world=16, here=8)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-at", "--batch", "64", *flags]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("device", "expected"), [("auto", (2, 8, 0)), ("cpu", (2, 0, 8))])
def test_without_numbers_the_settings_take_those_of_another_launcher(monkeypatch, device, expected):
    started_by_another(monkeypatch, world=16, here=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "pretended")
    args = ["digits-at", "--batch", "64", "--device", device]
    arguments = parse_arguments(args)
    config = _as_started(arguments, args).config
    assert (config.nodes, config.gpus, config.procs) == expected
    begun = replace(config, nodes=1, gpus=4 * bool(config.gpus), procs=4 * bool(config.procs))
    assert _as_started(replace(arguments, config=begun), args).config == config  # it goes on with others
    started_by_another(monkeypatch, world=16, here=5)
    with pytest.raises(UserError, match="16 processes, 5 of them on this machine"):
        _as_started(arguments, args)


def test_one_process_a_machine_is_its_first(monkeypatch):
    assert is_first_here()
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(LAUNCHER, "1")  # ours, on GPUs: each process has the local rank 0
    for rank, first in enumerate([True, False, True, False]):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert is_first_here() is first
    monkeypatch.delenv(LAUNCHER)  # srun may deal ranks out in turn: 0 and 2 on the first machine
    for rank, local_rank in enumerate(["0", "0", "1", "1"]):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert is_first_here() is (rank < 2)


def test_a_machine_has_its_own_share_of_the_gpus_and_of_the_workers(monkeypatch):
    started_by_another(monkeypatch, world=16, here=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "pretended")
    assert choose_device(replace(small(), procs=0, gpus=16), ChoiceLog(quiet=True)) == "cuda"
    assert choose_device(small(), ChoiceLog(quiet=True)) == "cpu"  # whose processes want no GPU
    with pytest.raises(UserError, match="--gpus 16: this machine has 1 GPU"):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        choose_device(replace(small(), procs=0, gpus=16), ChoiceLog(quiet=True))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    assert num_workers(LoadingConfig(), 16) == 4
