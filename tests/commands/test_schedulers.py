"""Several machines, on which srun or torchrun starts the processes, stops them and starts them again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.common.hosts import Host
from tests.helpers.command_line import Result, finish, newest, start, state_of, wait_for_checkpoint
from tests.helpers.machines import NET, PORTS, RUN, all_ended, assert_same_state, events_of, on

# With shared statistics a checkpoint changes no bit by averaging them.
LONG = (*RUN, "--device", "cpu", "--epochs", "20", "--sync-bn", "--evaluation.every-epochs", "0")
OFTEN = ("--checkpoint.every-s", "0.1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The longer run of two processes of one machine, which nothing stopped."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    result = finish(start("train", *LONG, "--procs", "2", "--out", run))
    assert result.code == 0, result.err
    return run


def srun(machines: list[Host], per_machine: int, *command: object) -> list[subprocess.Popen]:
    """Start `fastarat COMMAND` in as many tasks on each machine, as srun does."""
    total = {"SLURM_STEP_NUM_TASKS": len(machines) * per_machine}
    step = {**total, "SLURM_STEP_TASKS_PER_NODE": f"{per_machine}(x2)", "SLURM_STEP_NODELIST": f"{NET}.[1-2]"}

    def task(number: int) -> subprocess.Popen:
        node, local = divmod(number, per_machine)
        variables = {**step, "SLURM_PROCID": number, "SLURM_LOCALID": local, "SLURM_NODEID": node}
        return on(machines[node], *command, environment={name: str(value) for name, value in variables.items()})

    return [task(number) for number in range(len(machines) * per_machine)]


@pytest.mark.slow
def test_srun_needs_no_flag_but_the_recipe(machines, one_machine, tmp_path):
    ended = all_ended(srun(machines, 2, "train", *RUN))
    assert {result.code for result in ended} == {0}, "".join(result.err for result in ended)
    (run,) = (tmp_path / "runs").iterdir()  # each would have named another one
    assert_same_state(run, one_machine)


def stop_in_its_midst(run: Path, started: list[subprocess.Popen]) -> list[Result]:
    """SIGTERM to all, as at the end of a job's time."""
    wait_for_checkpoint(run, started[0], after=0)
    for process in started:
        process.terminate()
    ended = all_ended(started)
    assert 0 < state_of(newest(run))["step"] < 80, "it was stopped too late"
    return ended


@pytest.mark.slow
def test_what_srun_stops_goes_on_under_it_to_the_same_bits(machines, undisturbed, tmp_path):
    ended = stop_in_its_midst(tmp_path / "run", srun(machines, 1, "train", *LONG, *OFTEN, "--out", "run"))
    assert {result.code for result in ended} == {128 + signal.SIGTERM}
    again = all_ended(srun(machines, 1, "train", "--resume", "run"))
    assert {result.code for result in again} == {0} and "going on at step" in again[0].err, again[0].err
    assert_same_state(tmp_path / "run", undisturbed)


def torchrun(machines: list[Host], *command: object) -> list[subprocess.Popen]:
    """Start `fastarat COMMAND` in one process on each machine, as torchrun does."""
    meet = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NET}.1:{next(PORTS)}")
    launcher = (sys.executable, "-m", "torch.distributed.run", *meet, "--max-restarts", "2")

    def at(host: Host) -> tuple[str, ...]:
        # Torch would look for these two by the machine's name, which no machine here has for itself.
        place = ("--local-addr", host.address, "--rdzv-conf", f"is_host={int(host is machines[0])}")
        return (*host.within, *launcher, *place, "--no-python")

    return [start(*command, within=at(host)) for host in machines]


@pytest.mark.slow
def test_what_torchrun_starts_again_on_two_machines_goes_on_and_changes_no_bit(machines, undisturbed, tmp_path):
    """Where a process was lost torchrun counts another start than on the other machine."""
    for machine in machines:
        started = torchrun(machines, "train", *LONG, *OFTEN, "--out", machine.name)
        run = tmp_path / machine.name
        wait_for_checkpoint(run, started[0], after=0)
        os.kill(worker_of(machine), signal.SIGKILL)
        first, second = all_ended(started)
        assert (first.code, second.code) == (0, 0), first.err + second.err
        (event,) = events_of(run)
        assert event.startswith("going on at step ") and event.endswith("torchrun has started the processes again")
        assert_same_state(run, undisturbed)


@pytest.mark.slow
def test_what_stops_with_torchrun_goes_on_under_it_to_the_same_bits(machines, undisturbed, tmp_path):
    ended = stop_in_its_midst(tmp_path / "run", torchrun(machines, "train", *LONG, *OFTEN, "--out", "run"))
    assert all(result.code for result in ended) and not machines[0].pids() and not machines[1].pids()
    again = all_ended(torchrun(machines, "train", "--resume", "run"))
    assert {result.code for result in again} == {0} and "going on at step" in again[0].err, again[0].err
    assert_same_state(tmp_path / "run", undisturbed)


def worker_of(machine: Host) -> int:
    """The process that trains there, of torchrun's."""
    (pid,) = (pid for pid in machine.pids() if b"\0RANK=" in Path(f"/proc/{pid}/environ").read_bytes())
    return pid
