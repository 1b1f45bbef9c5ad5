"""Several processes on one machine: the same training as one, and an orderly end whatever happens."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from threading import Thread

import pytest
import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec

from fastarat.commands.train import run as train
from fastarat.common.ending import ended
from fastarat.common.processes import LAUNCHER
from fastarat.config import load_config
from fastarat.runs.weights import load_model
from fastarat.training.launching import agent as agent_module
from fastarat.training.launching import launch as launch_module
from fastarat.training.launching.launch import launch
from tests.helpers.command_line import (
    CHECKOUT,
    TINY,
    Result,
    assert_same,
    assert_same_run,
    finish,
    metrics,
    newest,
    record,
    results_of,
    start,
    state_of,
    wait_for,
    wait_for_checkpoint,
)
from tests.helpers.unmeasured import UNMEASURED

# One step of 64 images an epoch, so that the metrics of every epoch are those of a single step.
STEPS = (*TINY, "--epochs", "20", "--num-train-images", "64", "--evaluation.every-epochs", "0", "--sync-bn")
ENDLESS = (*TINY, "--epochs", "5000", "--evaluation.every-epochs", "0", "--procs", "2")
QUIETENED = ("torch.distributed", "torch.distributed.elastic.agent.server.api")


def _losses(run: Path) -> list[float]:
    return [line["train"]["loss"] for line in metrics(run)]


def _children(process: int) -> dict[int, dict[str, str]]:
    """Processes that `process` started, and the environment of each."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process:
                pairs = (entry / "environ").read_text().split("\0")
                found[int(entry.name)] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        except OSError:
            continue
    return found


def _gone(process: int, timeout: float = 30) -> bool:
    end = time.monotonic() + timeout
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_several_processes_take_the_same_twenty_steps_as_one_in_float64(fastarat, tmp_path, number):
    assert fastarat("train", *STEPS, "--dtype", "fp64", "--out", "one").code == 0
    result = finish(start("train", *STEPS, "--dtype", "fp64", "--procs", number, "--out", "several"))
    assert result.code == 0, result.err
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "several")
    assert len(two) == 20
    # Sums over processes are taken in another order: float64 roundings of 1e-16, which twenty steps let
    # grow; metrics are written with six digits after the point.
    assert two == pytest.approx(one, rel=1e-6, abs=1e-6)
    states = [state_of(newest(tmp_path / run)) for run in ("one", "several")]
    for part in ("model", "method"):
        for name, tensor in states[0][part].items():
            assert torch.allclose(tensor, states[1][part][name], rtol=1e-6, atol=1e-9), name
    models = [load_model(tmp_path / run / "model.safetensors")[0] for run in ("one", "several")]
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(models[0](images), models[1](images), rtol=1e-5, atol=1e-6)  # float32 forwards


@pytest.mark.slow
def test_gradients_sent_in_bf16_train_alike_and_are_recorded(tmp_path):
    losses = {}
    for out, flags in (("fp32", ()), ("bf16", ("--bf16-gradients",))):
        result = finish(start("train", *STEPS, "--dtype", "fp32", *flags, "--procs", "2", "--out", out))
        assert result.code == 0, result.err
        losses[out] = torch.tensor(_losses(tmp_path / out))
        assert load_config(tmp_path / out / "config.json").bf16_gradients == (out == "bf16")
    # The first update is of gradients rounded to 8 bits, one part in 256; twenty steps let that grow.
    assert losses["bf16"][0] == losses["fp32"][0] and not torch.equal(losses["bf16"], losses["fp32"])
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=2**-8 * 20, atol=0)


@pytest.mark.slow
def test_several_processes_stop_at_a_signal_and_go_on_to_the_same_bits(tmp_path):
    # With shared statistics every process holds the same ones, and a checkpoint changes none by averaging them.
    flags = (*TINY, "--epochs", "20", "--attack.steps", "2", "--procs", "2", "--sync-bn")
    process = start("train", *flags, "--out", "stopped")
    wait_for(tmp_path / "stopped/metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 128 + signal.SIGTERM and "Traceback" not in result.err
    said = [line for line in result.err.splitlines() if line.startswith("stopped at step")]
    assert len(said) == 1 and "--resume stopped" in said[0]
    assert "death signal" not in result.err  # the launcher's own report
    assert finish(start("train", "--resume", "stopped")).code == 0
    assert finish(start("train", *flags, "--out", "whole")).code == 0
    assert results_of(tmp_path / "stopped") == results_of(tmp_path / "whole")
    mine, other = (state_of(newest(tmp_path / run))["model"] for run in ("stopped", "whole"))
    assert_same(mine, other)


@pytest.fixture
def launching(monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """`launching(work)`: the exit code and the stderr of a command that launches processes from this one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "kernels")]))
    for name, value in {**UNMEASURED, "TORCH_CPP_LOG_LEVEL": "ERROR", LAUNCHER: ""}.items():
        monkeypatch.setenv(name, value)
    levels = {logger: logger.level for logger in map(logging.getLogger, QUIETENED)}
    quit_before = signal.getsignal(signal.SIGQUIT)

    def run(work: Callable[[], int]) -> tuple[int, str]:
        code = ended("fastarat", work)
        return code, capfd.readouterr().err

    yield run
    signal.signal(signal.SIGQUIT, quit_before)
    for logger, level in levels.items():
        logger.setLevel(level)


def test_when_a_process_is_killed_all_end_and_one_line_says_so(launching, tmp_path):
    """The other one, whose partner is gone, is the one that prints, and leaves the word to the launcher."""
    children = {}

    def kill_the_second() -> None:
        end = time.monotonic() + 120
        while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)
        children.update(_children(os.getpid()))
        for child, environment in children.items():
            if environment.get("RANK") == "1":
                os.kill(child, signal.SIGKILL)

    killer = Thread(target=kill_the_second)
    killer.start()
    code, said = launching(lambda: train([*ENDLESS, "--out", "run"]))
    killer.join()
    assert Result(code, "", said).error.startswith("process 1 was killed (SIGKILL") and code == 1
    ranks = [child for child, environment in children.items() if "RANK" in environment]
    assert len(ranks) == 2 and all(_gone(child) for child in ranks)


@pytest.mark.slow
def test_a_process_that_is_lost_is_started_again_and_changes_no_bit(tmp_path):
    flags = (*TINY, "--epochs", "60", "--procs", "2", "--sync-bn")  # of shared statistics averages change none
    flags = (*flags, "--evaluation.every-epochs", "0", "--checkpoint.every-s", "0.1")
    process = start("train", *flags, "--max-restarts", "2", "--out", "killed")
    run = tmp_path / "killed"
    wait_for_checkpoint(run, process, after=0)
    (second,) = (child for child, variables in _children(process.pid).items() if variables.get("RANK") == "1")
    os.kill(second, signal.SIGKILL)
    result = finish(process)
    assert result.code == 0 and result.err.count("process 1 was killed (SIGKILL; out of memory?): starting again") == 1
    (event,) = (event for session in record(run)["sessions"] for event in session.get("events", []))
    assert event.startswith("going on at step ") and event.endswith("process 1 was killed (SIGKILL; out of memory?)")
    assert finish(start("train", *flags, "--out", "whole")).code == 0
    assert results_of(run) == results_of(tmp_path / "whole")
    mine, other = (state_of(newest(tmp_path / run))["model"] for run in ("killed", "whole"))
    assert_same(mine, other)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python")


@pytest.mark.slow
def test_what_torchrun_starts_again_goes_on_and_changes_no_bit(tmp_path):
    flags = (*TINY, "--device", "cpu", "--epochs", "60", "--sync-bn", "--evaluation.every-epochs", "0")
    flags = (*flags, "--checkpoint.every-s", "0.1")
    process = start("train", *flags, "--out", "killed", within=(*TORCHRUN[:-1], "--max-restarts", "2", TORCHRUN[-1]))
    run = tmp_path / "killed"
    wait_for_checkpoint(run, process, after=0)
    (second,) = (child for child, variables in _children(process.pid).items() if variables.get("RANK") == "1")
    os.kill(second, signal.SIGKILL)
    result = finish(process)
    assert result.code == 0, result.err
    (event,) = (event for session in record(run)["sessions"] for event in session.get("events", []))
    assert event.startswith("going on at step ") and event.endswith("torchrun has started the processes again")
    assert finish(start("train", *flags, "--out", "whole", within=TORCHRUN)).code == 0
    assert_same_run(run, tmp_path / "whole")


def test_what_torchrun_may_start_again_needs_a_place_that_it_finds_again(fastarat, monkeypatch):
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in {"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_MAX_RESTARTS": "2", **numbers, **meet}.items():
        monkeypatch.setenv(name, value)
    result = fastarat("train", "digits-arat")
    assert result.code == 2 and "torchrun --max-restarts: give --out RUN" in result.err


@pytest.mark.slow
def test_who_says_rank_size_and_where_to_meet_has_one_training(tmp_path):
    """As Kubeflow's PyTorchJob starts a process a machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    flags = (*TINY, "--device", "cpu")
    started = [start("train", *flags, "--out", "run", environment={**meet, "RANK": str(rank)}) for rank in (0, 1)]
    for process in started:
        result = finish(process)
        assert result.code == 0, result.err
    config = load_config(tmp_path / "run/config.json")
    assert (config.nodes, config.procs) == (2, 1)
    assert finish(start("train", *flags, "--procs", "2", "--out", "one-machine")).code == 0
    assert_same_run(tmp_path / "run", tmp_path / "one-machine")


def test_variables_that_no_launcher_sets_end_in_one_line(fastarat, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "x")
    result = fastarat("train", *TINY, "--out", "run")
    assert result.code == 2 and result.error.startswith("SLURM_STEP_NUM_TASKS is 'x'")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_a_checkpoint_and_the_training_goes_on(tmp_path):
    """With a step an epoch, too."""
    flags = (*STEPS, "--epochs", "100", "--checkpoint.every-s", "3600")  # none is due
    process = start("train", *flags, "--procs", "2", "--out", "run")
    run = tmp_path / "run"
    wait_for(run / "metrics.jsonl", process)
    process.send_signal(signal.SIGUSR1)
    wait_for_checkpoint(run, process, after=0)
    saved = state_of(newest(run))["step"]
    result = finish(process)
    assert result.code == 0, result.err
    assert result.err.count(f"a checkpoint was asked for, and is written at step {saved}") == 1
    assert 0 < saved < 100 == state_of(newest(run))["step"]


FAILS = """
import os
from pathlib import Path
from threading import Event

import torch.distributed

from fastarat.common.errors import WorkError


def wait_for_the_others():
    Event().wait(100)
    os._exit(77)


torch.distributed.destroy_process_group = wait_for_the_others
if "RANK" in os.environ:
    Path(__file__).with_name(f"{os.getpid()}.pid").touch()
"""
# By what it does: which process fails at it, how, and what is said.
FAILING = {
    "a step": (
        1,
        """
from fastarat.training.state import Training
advance = Training.advance
def fail(training, *args):
    if training.step == 2:
        raise WorkError("the disk is full")
    return advance(training, *args)
Training.advance = fail
""",
        "the disk is full",
    ),
    "data": (
        1,
        """
from fastarat.data.loading.resident import ResidentLoader
batches = ResidentLoader.batches
def fail(loader, *args):
    for number, batch in enumerate(batches(loader, *args)):
        if number == 2:
            raise WorkError("a.png has changed")
        yield batch
ResidentLoader.batches = fail
""",
        "a.png has changed",
    ),
    "a checkpoint": (  # on a disk that is full
        0,
        """
import resource
from fastarat.training.loop import Loop
save = Loop._save
def fail(loop, **how):
    if loop.training.step:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    save(loop, **how)
Loop._save = fail
""",
        "cannot write run/checkpoints/step-",
    ),
    "an evaluation": (
        1,
        """
from fastarat.evaluation import accuracies
def fail(*args, **how):
    raise WorkError("the net fails")
accuracies.under_attack = fail
""",
        "the net fails",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", FAILING)
def test_a_process_that_fails_says_why_and_waits_for_nobody_whatever_it_does(launching, monkeypatch, tmp_path, what):
    """NCCL does not end before all processes end it."""
    rank, how, says = FAILING[what]
    alone = f"if os.environ.get('RANK') == '{rank}':\n" + indent(how, "    ")
    (tmp_path / "sitecustomize.py").write_text(FAILS + alone)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    flags = ("--evaluation.every-epochs", "1", "--checkpoint.every-s", "0")
    code, said = launching(lambda: train([*ENDLESS, *flags, "--max-restarts", "3", "--out", "run"]))
    assert code == 1 and Result(code, "", said).error.startswith(says)  # which a restart would meet again
    processes = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert len(processes) == 2 and all(map(_gone, processes))


IGNORES = "import os, signal; signal.signal({0}, signal.SIG_IGN); os.kill(os.getppid(), {0}); signal.pause()"


def test_a_process_that_does_not_end_when_it_is_told_to_is_killed_and_that_is_said(launching, monkeypatch):
    def started(**settings):
        return WorkerSpec(**{**settings, "args": ("-c", IGNORES.format(int(signal.SIGTERM)))})

    monkeypatch.setattr(launch_module, "WorkerSpec", started)
    monkeypatch.setattr(agent_module, "ORDERLY_S", 0)
    code, said = launching(lambda: launch(1, ["train"], goes_on=""))
    assert code == 128 + signal.SIGTERM
    assert said.splitlines() == [
        "1 of 1 processes had not ended 0 s after SIGTERM and were killed: the newest checkpoint is from before that"
    ]


def test_what_is_wrong_is_said_once_by_all_processes_together(launching):
    """Both find it, in the settings already; the launcher says it."""
    code, said = launching(lambda: launch(2, ["train", "--epochs", "0", "--out", "run"], port=0, goes_on=""))
    # One that the launcher ends before it could find the same may say that it was interrupted.
    assert code == 2 and Result(code, "", said).error == "epochs is 0: give 1 or more"


def test_a_port_in_use_is_refused_before_anything_starts(fastarat, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = fastarat("train", *TINY, "--procs", "2", "--port", port, "--out", "run")
    assert result.code == 2 and str(port) in result.error and "--port" in result.error
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("flags", [("--gpus", "2"), ("--device", "cuda")])
def test_without_a_gpu_asking_for_one_says_what_there_is(fastarat, tmp_path, flags):
    result = fastarat("train", *TINY, *flags, "--out", "run")
    assert result.code == 2 and "no GPU" in result.error and "--device cpu" in result.error
    assert not (tmp_path / "run").exists()


def test_more_gpus_than_there_are_are_refused_with_their_number(fastarat, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    result = fastarat("train", *TINY, "--gpus", "4", "--out", "run")
    assert result.code == 2 and "3 GPUs" in result.error and "--gpus 3" in result.error
    assert not (tmp_path / "run").exists()


def test_the_first_step_agrees_in_float32_and_when_the_launcher_is_killed_its_processes_save_and_end(
    fastarat, tmp_path
):
    first = (*STEPS, "--dtype", "fp32")
    process = start("train", *first, "--epochs", "5000", "--procs", "2", "--out", "run", measured=True)
    assert fastarat("train", *first, "--epochs", "1", "--out", "one").code == 0
    wait_for(tmp_path / "run/metrics.jsonl", process)
    children = _children(process.pid)
    process.kill()
    result = finish(process)  # their ends of the pipes, too
    assert all(_gone(child) for child in children)
    assert "stopped at step" in result.err and "Traceback" not in result.err
    assert state_of(newest(tmp_path / "run"))["step"] > 0
    # One forward through a dozen layers, each with float32 roundings of 6e-8 in another order.
    assert _losses(tmp_path / "run")[0] == pytest.approx(_losses(tmp_path / "one")[0], rel=1e-5)
