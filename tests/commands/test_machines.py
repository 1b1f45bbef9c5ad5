"""Several machines: hosts in network namespaces of this one, some of which fail."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
import torch

from tests.helpers.command_line import Result, finish, newest, start, state_of, wait_for
from tests.helpers.machines import NET, PORTS, RUN, all_ended, assert_same_state, events_of, on


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
def test_two_machines_with_shared_statistics_train_as_one_process(machines, tmp_path):
    flags = (*RUN, "--sync-bn", "--dtype", "fp64")
    meet = ("--nodes", "2", "--procs", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}", "--out", "four")
    started = [start("train", *flags, "--out", "one"), *(on(machine, "train", *flags, *meet) for machine in machines)]
    ended = all_ended(started)
    assert {result.code for result in ended} == {0}, "".join(result.err for result in ended)
    mine, other = (state_of(newest(tmp_path / run)) for run in ("four", "one"))
    for part in ("model", "method"):
        # Sums over processes are taken in another order: float64 roundings of 1e-16, which eight steps let grow.
        torch.testing.assert_close(mine[part], other[part], rtol=0, atol=1e-6)


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
def test_two_machines_analyse_as_one_and_refuse_another_run(machines, one_machine, tmp_path):
    """Each has the run on a disk of its own, and measures one of its two states."""
    flags = ("--num-images", "20", "--batches", "1", "--device", "cpu")
    assert finish(start("analyze", one_machine, *flags, "--out", tmp_path / "one")).code == 0

    def ended(*of_the_second: object) -> list[Result]:
        meet = ("--nodes", "2", "--rendezvous", f"{NET}.1:{next(PORTS)}")
        own = zip(machines, [(), of_the_second], strict=True)
        return all_ended([on(it, "analyze", "run", *flags, *meet, *more, cwd=tmp_path / it.name) for it, more in own])

    runs = [tmp_path / host.name / "run" for host in machines]
    for run in runs:
        shutil.copytree(one_machine, run)
    first, second = ended()
    assert (first.code, second.code) == (0, 0), first.err + second.err
    written = (runs[0] / "analysis", tmp_path / "one")
    ours, theirs = (json.loads((folder / "analysis.json").read_text()) for folder in written)
    assert len(ours["states"]) == 2 and {**ours, "run": ""} == {**theirs, "run": ""}
    assert not second.out and not (runs[1] / "analysis").exists()
    _, second = ended("--seed", "1")
    assert second.code == 2 and second.error.startswith("process 1 has another run or other settings than the first")


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
    refused = finish(on(machines[0], "train", *endless, *meet, "--seed", "1", cwd=folders[0]))
    assert refused.code == 2 and refused.error.startswith(f"this machine has another seed than {NET}.2: give all")
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
