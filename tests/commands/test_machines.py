"""Several machines: hosts in network namespaces of this one, each with a network interface of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.helpers.command_line import TINY, Result, assert_same, finish, newest, start, state_of, wait_for

NET = "10.77.0"
BRIDGE = "fastarat-br"
RUN = (*TINY, "--epochs", "2", "--num-train-images", "256", "--batch", "64")
PORTS = count(29500)


def ip(*args: str) -> bool:
    """Whether the command `ip ARGS` succeeded."""
    return subprocess.run(["ip", *args], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """The names of two machines, NET.1 and NET.2."""
    names = [f"fastarat-{i}" for i in (1, 2)]
    if os.geteuid() or not shutil.which("ip") or not ip("netns", "add", names[0]):
        pytest.skip("hosts in network namespaces need root, and the command ip (Debian: iproute2)")
    try:
        assert ip("link", "add", BRIDGE, "type", "bridge") and ip("link", "set", BRIDGE, "up")
        assert ip("netns", "add", names[1])
        for i, name in enumerate(names, 1):
            assert ip("link", "add", f"fastarat-v{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            assert ip("link", "set", f"fastarat-v{i}", "master", BRIDGE, "up")
            assert ip("-n", name, "addr", "add", f"{NET}.{i}/24", "dev", "eth0")
            assert all(ip("-n", name, "link", "set", device, "up") for device in ("eth0", "lo"))
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)
        ip("link", "del", BRIDGE)


def on(machine: str, *command: object, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start `fastarat ARGS` there."""
    return start(*command, environment=environment, within=("ip", "netns", "exec", machine))


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
def test_machines_with_other_settings_train_nothing(machines, tmp_path):
    meet = ("--nodes", "2", "--procs", "1", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--out", "run")
    ended = all_ended([on(machine, "train", *RUN, *meet, "--seed", i) for i, machine in enumerate(machines)])
    assert ended[0].code and ended[1].code == 2
    assert ended[1].error.startswith(
        "process 1 has another seed than the first one: give all machines the same command"
    )
    assert "another process has ended" in ended[0].error and not (tmp_path / "run").exists()


def pids(machine: str) -> list[int]:
    """Of what runs there."""
    found = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "told to end"])
def test_a_machine_that_goes_ends_the_other_and_a_signal_saves(machines, tmp_path, is_killed):
    meet = ("--nodes", "2", "--procs", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--out", "run")
    endless = (*RUN, "--epochs", "5000", "--evaluation.every-epochs", "0")
    first, second = (on(machine, "train", *endless, *meet) for machine in machines)
    wait_for(tmp_path / "run/metrics.jsonl", first)
    if is_killed:
        for pid in pids(machines[1]):
            os.kill(pid, signal.SIGKILL)
    else:
        second.terminate()
    result, _ = all_ended([first, second])
    assert not pids(machines[0]) and not pids(machines[1])
    if is_killed:
        assert result.code == 1 and result.error.startswith("another process has ended: it was killed, or failed")
    else:
        assert result.code == 128 + signal.SIGTERM and "stopped at step" in result.err
        assert state_of(newest(tmp_path / "run"))["step"] > 0
