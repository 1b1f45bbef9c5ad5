"""`fastarat submit`: a training as a job, which goes on where it was stopped."""

import os
import signal
import stat
from pathlib import Path

import pytest

from fastarat.commands.submit import going_on
from fastarat.commands.train import parse_arguments
from fastarat.training.launching.job import TrainingJob
from tests.helpers.command_line import TINY, assert_same, finish, newest, start, state_of, wait_for

RUN = (*TINY, "--epochs", "20", "--evaluation.every-epochs", "0", "--device", "cpu", "--sync-bn", "--log", "csv")


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("--procs", "2")], ids=["one process", "two"])
def test_a_job_that_is_preempted_queues_again_and_ends_in_the_same_weights(fastarat, tmp_path, processes):
    job = fastarat("submit", "digits-at", *RUN, *processes, "--out", "run", "--cluster", "local", "--json").json
    controller = int(job["job"])
    wait_for(tmp_path / "run/metrics.jsonl")
    (task,) = children(controller)
    os.kill(task, signal.SIGUSR2)
    assert os.waitpid(controller, 0)[1] == 0
    log = Path(job["log"]).read_text()
    assert "stopped at step" in log and "going on at step" in log, log
    assert finish(start("train", "digits-at", *RUN, *processes, "--out", "whole")).code == 0
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") == 1 + 20
    assert not (tmp_path / "run/report.html").exists()
    for part in ("model", "momenta"):
        assert_same(*(state_of(newest(tmp_path / run))[part] for run in ("run", "whole")))


@pytest.mark.slow
def test_a_job_that_cannot_train_fails_and_its_log_says_why(fastarat, tmp_path):
    job = fastarat(
        "submit", "digits-at", *RUN, "--data", "not-there", "--out", "run", "--cluster", "local", "--json"
    ).json
    os.waitpid(int(job["job"]), 0)
    log = Path(job["log"]).read_text()
    assert "fastarat: error: " in log and "fastarat train ended with exit code" in log
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), ()),
        (("--no-report", "--epochs", "3"), ("--no-report",)),
        (("--log", "csv", "wandb"), ("--log", "csv", "wandb")),
        (("--profile", "3", "--max-restarts", "2"), ("--max-restarts", "2")),
    ],
    ids=str,
)
def test_a_job_that_goes_on_has_all_flags_but_those_that_its_run_keeps(given, kept, tmp_path):
    args = ["digits-at", *given, "--out", str(tmp_path)]
    assert going_on(parse_arguments(args), args, tmp_path) == ("--resume", str(tmp_path), *kept)


def test_a_job_that_resumes_a_run_has_its_settings_each_time(run):
    args = ["--resume", str(run), "--epochs", "9"]
    assert going_on(parse_arguments(args), args, run) == tuple(args)


def test_a_job_trains_by_its_flags_once_and_goes_on_by_the_others(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **options: seen.append(command[4:]) or Ended())
    job = TrainingJob(("digits-at",), ("--resume", "run"), tmp_path)
    job()
    (tmp_path / "config.json").touch()
    job()
    assert seen == [["digits-at"], ["--resume", "run"]]


class Ended:
    """A process that has ended well."""

    def wait(self) -> int:
        return 0


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> None:
    """A Slurm that takes every job, and starts none."""
    for name, body in (("srun", ""), ("sbatch", "echo Submitted batch job 12")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.usefixtures("slurm")
def test_slurm_is_told_of_machines_gpus_and_of_the_notice_that_a_checkpoint_takes(fastarat, tmp_path):
    asked = ("--nodes", "2", "--gpus", "8", "--hours", "0.07", "--partition", "gpu", "--options", "account=vision")
    result = fastarat("submit", "cifar10-resnet18-arat", *asked)
    assert result.code == 0 and result.err.startswith("job 12: ")
    (script,) = tmp_path.glob("runs/submitted/*/12_submission.sh")
    options = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "#SBATCH" in line}
    assert {"nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=4", "partition=gpu"} <= options
    assert {"signal=USR2@120", "account=vision", "cpus-per-task=8"} <= options


def test_what_cannot_be_submitted_is_refused_in_one_line(fastarat, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for flags, said in (
        ((), "this machine has no Slurm (sbatch is not here)"),
        (("--cluster", "local", "--nodes", "2", "--procs", "2"), "--cluster local: this is one machine, not 2"),
        (("--options", "account"), "--options account: give NAME=VALUE"),
        (("--options", "nodes=9"), "--options nodes=9: nodes is set by --nodes: leave it out"),
        (("--options", "cpus_per_task=9"), "--options cpus_per_task=9: cpus-per-task is set by --cpus"),
        (("--options", "signal=USR2@9"), "--options signal=USR2@9: signal is set by submit itself"),
        (("--hours", "0"), "--hours is 0"),
        (("--hours", "0.01"), "--hours is 0.01: give 0.07 or more"),
        (("--nodes", "2:4", "--max-restarts", "3"), "--nodes 2:4: a job has a fixed number of machines: give one"),
        (("--procs", "2", "--max-restarts", "3"), "--max-restarts 3: Slurm starts the processes"),
        (("--hours", "nan"), "--hours is nan: give a finite number"),
        (("--nodes", "0"), "nodes is 0: give 1 or more"),
        (("--rendezvous", "a:1"), "--rendezvous is Slurm's to say"),
        (("--epochs", "0"), "epochs is 0: give 1 or more"),
    ):
        result = fastarat("submit", "digits-at", *flags)
        assert result.code == 2 and result.error.startswith(said)
