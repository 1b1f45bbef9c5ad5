"""Several machines: hosts in network namespaces of this one, some of which fail."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench.common.hosts import Host, hosts
from fastarat.common.errors import UserError
from tests.helpers.command_line import (
    TINY,
    Result,
    assert_same,
    finish,
    newest,
    record,
    start,
    state_of,
    wait_for,
    wait_for_checkpoint,
)

NET = "10.77.0"
PREFIX = f"fast-{os.environ.get('PYTEST_XDIST_WORKER', 'one')}"
"""of names of hosts: each worker of pytest has its own"""
RUN = (*TINY, "--epochs", "2", "--num-train-images", "256", "--batch", "64")
PORTS = count(29500)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Host]]:
    """Two machines, NET.1 and NET.2."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(hosts(2, PREFIX, NET))
        except UserError as error:
            pytest.skip(str(error))
        yield made


def on(machine: Host, *command: object, **options: Any) -> subprocess.Popen:
    """Start `fastarat ARGS` there."""
    return start(*command, within=machine.within, **options)


def all_ended(processes: list[subprocess.Popen]) -> list[Result]:
    return [finish(process) for process in processes]


def assert_same_state(ours: Path, theirs: Path) -> None:
    mine, other = state_of(newest(ours)), state_of(newest(theirs))
    for part in ("model", "method", "momenta"):
        assert_same(mine[part], other[part], part)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory) -> Path:
    """The run of four processes of one machine."""
    run = tmp_path_factory.mktemp("one") / "run"
    result = finish(start("train", *RUN, "--procs", "4", "--out", run))
    assert result.code == 0, result.err
    return run


@pytest.mark.slow
def test_two_machines_of_two_processes_train_bitwise_as_one_of_four(machines, one_machine, tmp_path):
    meet = ("--nodes", "2", "--procs", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}")
    second, first = all_ended([on(machine, "train", *RUN, *meet, "--out", "run") for machine in reversed(machines)])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "epoch 2/2" in first.err and not second.err  # the first process alone speaks
    assert_same_state(tmp_path / "run", one_machine)


REPORTS_FOR_LONG = """
import fastarat.commands.train as train
import time
train.write_page = lambda run: (time.sleep(20), print("reported", flush=True))
"""


@pytest.mark.slow
def test_a_machine_that_is_done_waits_for_the_first_which_still_reports(machines, tmp_path):
    """For longer than after which a silent machine counts as lost."""
    (tmp_path / "sitecustomize.py").write_text(REPORTS_FOR_LONG)
    flags = [flag for flag in RUN if flag != "--no-report"]
    meet = ("--nodes", "1:2", "--procs", "1", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--max-restarts", "3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        started = [on(machine, "train", *flags, *meet, "--out", "run") for machine in machines]
    first, second = all_ended(started)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "reported" in first.out and "starting again" not in first.err and not events_of(tmp_path / "run")


@pytest.mark.slow
def test_srun_needs_no_flag_but_the_recipe(machines, one_machine, tmp_path):
    def task(number: int) -> subprocess.Popen:
        node = number // 2
        places = {"SLURM_PROCID": number, "SLURM_LOCALID": number % 2, "SLURM_NODEID": node, "SLURM_STEP_NUM_TASKS": 4}
        step = {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": f"{NET}.[1-2]"}
        return on(machines[node], "train", *RUN, environment={k: str(v) for k, v in (places | step).items()})

    ended = all_ended([task(number) for number in range(4)])
    assert {result.code for result in ended} == {0}, "".join(result.err for result in ended)
    (run,) = (tmp_path / "runs").iterdir()  # each would have named another one
    assert_same_state(run, one_machine)


@pytest.mark.slow
def test_two_machines_evaluate_as_one_and_refuse_other_models(machines, one_machine, tmp_path):
    """Each has the run on a disk of its own."""
    flags = (
        "--num-images",
        "45",
        "--batch",
        "10",
        "--eps-255",
        "20",
        "--attack",
        "apgd-ce",
        "--device",
        "cpu",
        "--json",
    )
    one = finish(start("eval", one_machine, *flags)).json

    def ended(*of_the_second: object) -> list[Result]:
        meet = ("--nodes", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--state", "state")
        own = zip(machines, [(), of_the_second], strict=True)
        return all_ended([on(it, "eval", "run", *flags, *meet, *more, cwd=tmp_path / it.name) for it, more in own])

    for host in machines:
        shutil.copytree(one_machine, tmp_path / host.name / "run")
    first, second = ended()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.json["counts"] == one["counts"] and not second.out
    assert (tmp_path / machines[0].name / "state").exists() and not (tmp_path / machines[1].name / "state").exists()
    _, second = ended("--branch", "clean")
    assert second.code == 2 and second.error.startswith("process 1 has another model, other images or other settings")


@pytest.mark.slow
def test_machines_with_other_settings_train_nothing(machines, tmp_path):
    meet = ("--nodes", "2", "--procs", "1", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--out", "run")
    ended = all_ended([on(machine, "train", *RUN, *meet, "--seed", i) for i, machine in enumerate(machines)])
    assert ended[0].code and ended[1].code == 2
    assert ended[1].error.startswith(
        "process 1 has another seed than the first one: give all machines the same command"
    )
    assert "another process has ended" in ended[0].error and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "told to end"])
def test_a_machine_that_goes_ends_the_other_and_a_signal_saves(machines, tmp_path, is_killed):
    meet = ("--nodes", "2", "--procs", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--out", "run")
    endless = (*RUN, "--epochs", "5000", "--evaluation.every-epochs", "0")
    first, second = (on(machine, "train", *endless, *meet) for machine in machines)
    wait_for(tmp_path / "run/metrics.jsonl", first)
    if is_killed:
        machines[1].kill()
    else:
        second.terminate()
    result, _ = all_ended([first, second])
    assert not machines[0].pids() and not machines[1].pids()
    if is_killed:
        assert result.code == 1 and result.error.startswith("another process has ended: it was killed, or failed")
    else:
        assert result.code == 128 + signal.SIGTERM and "stopped at step" in result.err
        assert state_of(newest(tmp_path / "run"))["step"] > 0


def events_of(run: Path) -> list[str]:
    """What happened to a run, by its record."""
    return [said for session in record(run)["sessions"] for said in session.get("events", [])]


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen, timeout: float = 120) -> None:
    """Wait for what a process that must still run makes so."""
    end = time.monotonic() + timeout
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_goes_on_without_a_machine_that_is_lost_and_takes_one_that_comes(machines, tmp_path):
    """Each has a disk of its own: the run lies on that of the machine where they meet, here the second."""
    folders = [tmp_path / host.name for host in machines]
    meet = ("--nodes", "1:2", "--procs", "1", "--rendezvous", f"{NET}.2:{next(PORTS)}", "--max-restarts", "1")
    endless = (*RUN, "--epochs", "5000", "--evaluation.every-epochs", "0", "--out", "run")
    for folder in folders:
        folder.mkdir()
    other, first = (
        on(host, "train", *endless, *meet, cwd=folder) for host, folder in zip(machines, folders, strict=True)
    )
    run = folders[1] / "run"
    wait_for(run / "metrics.jsonl", first)
    machines[0].kill()
    finish(other)
    wait_until(lambda: len(events_of(run)) == 1, first)
    back = on(machines[0], "train", *endless, *meet, cwd=folders[0])
    wait_until(lambda: len(events_of(run)) == 2, first)
    first.terminate()
    result, came = all_ended([first, back])
    lost, joined = events_of(run)
    assert "in 1 process: another process has ended" in lost or "in 1 process: a machine is gone" in lost
    assert "in 2 processes: a machine comes in" in joined
    assert result.code == 128 + signal.SIGTERM and "stopped at step" in result.err
    assert came.code and not (folders[0] / "run").exists()
    assert not machines[0].pids() and not machines[1].pids()


@pytest.mark.slow
def test_what_torchrun_starts_again_on_two_machines_goes_on_and_changes_no_bit(machines, tmp_path):
    """Where a process was lost torchrun counts another start than on the other machine."""
    flags = (*RUN, "--device", "cpu", "--epochs", "20", "--sync-bn", "--evaluation.every-epochs", "0")

    def begun(out: str) -> list[subprocess.Popen]:
        meet = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NET}.1:{next(PORTS)}")
        torchrun = (sys.executable, "-m", "torch.distributed.run", *meet, "--max-restarts", "2")

        def at(host: Host) -> tuple[str, ...]:
            # Torch would look for these two by the machine's name, which no machine here has for itself.
            place = ("--local-addr", host.address, "--rdzv-conf", f"is_host={int(host is machines[0])}")
            return (*host.within, *torchrun, *place, "--no-python")

        often = ("--checkpoint.every-s", "0.1")
        return [start("train", *flags, *often, "--out", out, within=at(host)) for host in machines]

    assert {result.code for result in all_ended(begun("whole"))} == {0}
    for machine in machines:
        started = begun(machine.name)
        run = tmp_path / machine.name
        wait_for_checkpoint(run, started[0], after=0)
        os.kill(worker_of(machine), signal.SIGKILL)
        first, second = all_ended(started)
        assert (first.code, second.code) == (0, 0), first.err + second.err
        (event,) = events_of(run)
        assert event.startswith("going on at step ") and event.endswith("torchrun has started the processes again")
        assert_same_state(run, tmp_path / "whole")


def worker_of(machine: Host) -> int:
    """The process that trains there, of torchrun's."""
    (pid,) = (pid for pid in machine.pids() if b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes())
    return pid
