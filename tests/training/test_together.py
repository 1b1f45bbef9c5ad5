"""Several processes never wait for each other for ever: what they meet over is decided by one of them."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastarat.__main__ import main
from fastarat.commands.train import _as_started, parse_arguments
from fastarat.common.choice_log import ChoiceLog
from fastarat.common.distributed import World
from fastarat.common.errors import Interrupted, UserError, WorkError
from fastarat.common.processes import LAUNCHER, is_first_here
from fastarat.common.signals import ENDING
from fastarat.config import Config
from fastarat.config.data import LoadingConfig
from fastarat.config.recipes import recipe
from fastarat.data.loading.build import num_workers
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run
from fastarat.training import loop as loop_module
from fastarat.training import reporting as display_module
from fastarat.training import train as trainer
from fastarat.training.build import build_training, start_training
from fastarat.training.choices import choose_device
from fastarat.training.evaluations import Evaluations
from fastarat.training.loop import Loop
from fastarat.training.step.compiled import CapturedStep, StepBySize
from fastarat.training.train import train
from tests.helpers.meetings import Meetings


@pytest.fixture
def meetings(monkeypatch) -> Meetings:
    return Meetings(monkeypatch)


def small(**settings) -> Config:
    """Two epochs of two steps, each evaluated, on two processes."""
    config = recipe("digits-at")
    evaluation = replace(config.evaluation, num_images=4, num_clean_images=4, steps=1, every_epochs=1)
    attack = replace(config.attack, steps=1)
    few = {"num_train_images": 128, "epochs": 2, "batch": 64, "procs": 2, "evaluation": evaluation, "attack": attack}
    return replace(config, **{**few, **settings})


def averaged() -> Config:
    """`small`, with a best checkpoint, snapshots, and an average that is evaluated at the end."""
    config = small(num_validation_images=50)
    averaging = replace(config.averaging, kind="swa", start_epoch=1, every_steps=1)
    return replace(config, averaging=averaging, checkpoint=replace(config.checkpoint, history=1))


def set_clocks(monkeypatch, meetings: Meetings, hurried: int) -> None:
    """Clocks of which one runs away, so that something is always due by it, and the other stands still."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1e6 * (meetings.rank == hurried)
        return now[0]

    for module in (loop_module, display_module):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic, time=time.time))


def count_saves(monkeypatch, meetings: Meetings) -> list[int]:
    """The processes that save a checkpoint, at each time."""
    saves, save = [], Loop._save

    def counted(loop: Loop, **options) -> None:
        saves.append(meetings.rank)
        save(loop, **options)

    monkeypatch.setattr(Loop, "_save", counted)
    return saves


@pytest.mark.parametrize(("hurried", "num_saves"), [(0, 1 + 2 + 2), (1, 1 + 1)], ids=["first", "second"])
def test_clocks_that_disagree_keep_no_process_waiting_and_the_first_one_s_says_when_to_save(
    tmp_path, monkeypatch, meetings, hurried, num_saves
):
    set_clocks(monkeypatch, meetings, hurried)
    monkeypatch.setattr(Run, "is_writing", Run.finish_writing)  # none is put off because the disk is slow
    saves = count_saves(monkeypatch, meetings)
    for out in ("first", "second"):
        train(small(), tmp_path / out)
        meetings.second()
    meetings.end()
    # The beginning and the end; in between once an epoch within it and once at its end, if that is due.
    assert (saves.count(0), saves.count(1)) == (num_saves, num_saves)


@pytest.mark.parametrize("better", [0, 1])
def test_accuracies_that_disagree_keep_no_process_waiting(tmp_path, monkeypatch, meetings, better):
    """Of validation and of the average: whether it is the best is asked where all of them write the weights."""

    def evaluate(evaluations: Evaluations, model: torch.nn.Module) -> dict:
        robust = 10.0 * evaluations.training.epoch * (1 if meetings.rank == better else -1)
        return {"images": "validation", "num_images": 4, "steps": 1, "clean": 50.0, "robust": robust}

    monkeypatch.setattr(Evaluations, "evaluate", evaluate)
    for _ in range(2):
        train(averaged(), tmp_path / str(meetings.rank))
        meetings.second()
    meetings.end()


def test_a_run_goes_on_from_the_checkpoint_that_the_first_process_found(tmp_path, monkeypatch, meetings):
    config, run = small(), tmp_path / "run"
    train(config, run)
    meetings.held.clear()
    found = Run.has_checkpoint
    monkeypatch.setattr(Run, "has_checkpoint", lambda self: meetings.rank == 0 and found(self))
    for _ in range(2):
        train(replace(config, epochs=3), run, resume=True)
        meetings.second()
    meetings.end()


def test_the_second_process_takes_format_kernels_step_and_loader_from_the_first(tmp_path, monkeypatch, meetings):
    def only_the_first(choose: Callable) -> Callable:
        return lambda *args: choose(*args) if meetings.rank == 0 else pytest.fail("the second process chose itself")

    monkeypatch.setattr(trainer, "choose", only_the_first(trainer.choose))
    wishes, opened = [], trainer.open_for_training

    def wished(config, device):
        wishes.append(config.loader)
        return opened(config, device)

    monkeypatch.setattr(trainer, "open_for_training", wished)
    for out in ("first", "second"):
        train(small(epochs=1), tmp_path / out)
        meetings.second()
    meetings.end()
    assert wishes == ["auto", "resident"]


def test_a_process_that_finds_other_images_says_so_before_it_trains(tmp_path, monkeypatch, meetings):
    train(small(epochs=1), tmp_path / "first")
    meetings.second()
    monkeypatch.setattr(trainer, "_settings", lambda config: {})  # alike, and the images are not: of another disk
    with pytest.raises(UserError, match="process 1 finds other images in digits than the first one"):
        train(small(epochs=1, num_train_images=192), tmp_path / "second")


def with_another(monkeypatch, *theirs: int, rank: int = 0, decided: object = None) -> World:
    """One of two processes; whenever largest numbers are asked for, the other one's are these, and `decided` is what it
    decides as the first one."""

    def allreduce(tensors: list[torch.Tensor], options: object) -> SimpleNamespace:
        if len(tensors[0]) == len(theirs):
            tensors[0].copy_(torch.maximum(tensors[0], torch.tensor(theirs)))
        return SimpleNamespace(wait=lambda: None)

    def broadcast(box: list[object], src: int, group: object) -> None:
        box[:] = [decided] if rank else box

    monkeypatch.setattr(dist, "barrier", lambda group: None)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    group: object = SimpleNamespace(allreduce=allreduce)
    return World(torch.device("cpu"), rank, 2, None, group)  # type: ignore[arg-type]


def loop_in(tmp_path, world: World) -> Loop:
    config = small(epochs=1)
    training = build_training(config, open_dataset("digits"), world)
    run = Run(tmp_path / "run")
    run.create(config, {})
    return Loop(training, run, lambda batch: {}, compiles=False)


def test_a_loss_that_another_process_saw_first_counts_from_the_step_it_saw(tmp_path, monkeypatch):
    loop = loop_in(tmp_path, with_another(monkeypatch, -5))
    loop.training.first_bad_step.fill_(6)  # ours came from the weights that theirs had ruined
    loop.training.step = 9
    for step in (4, 5):
        (loop.run.checkpoints / f"step-{step:09d}.pt").touch()
    with pytest.raises(WorkError, match=r"not finite at step 5.*step-000000004"):
        loop._check_finite()
    assert [path.name for path in loop.run.checkpoints.glob("step-*.pt")] == ["step-000000004.pt"]


def test_of_a_loss_that_is_not_finite_every_process_names_the_checkpoint_to_go_on_from(tmp_path, monkeypatch):
    """The launcher says what any of them said, and kills those that are left some seconds later."""
    good = tmp_path / "elsewhere" / "step-000000004.pt"  # the others need not see the directory
    loop = loop_in(tmp_path, with_another(monkeypatch, -5, rank=1, decided=good))
    with pytest.raises(WorkError, match=f"last good checkpoint is {good}: go on"):
        loop._check_finite()


def test_a_signal_in_an_evaluation_stops_all_processes_there(tmp_path, monkeypatch, meetings):
    """The second one, which it does not reach, learns of it when its share is done."""

    evaluated = Loop._evaluated

    def signalled(loop: Loop) -> dict:
        loop.stop_signal = 0 if meetings.rank else signal.SIGTERM
        return evaluated(loop)

    monkeypatch.setattr(Loop, "_evaluated", signalled)
    for out in ("first", "second"):
        with pytest.raises(Interrupted, match=r"^stopped at step 2 \(evaluating\)$") as stopped:
            train(small(), tmp_path / out)
        assert stopped.value.number == signal.SIGTERM
        meetings.second()
    meetings.end()


def test_a_signal_to_any_process_stops_all_and_gives_its_number(tmp_path, monkeypatch):
    loop = loop_in(tmp_path, with_another(monkeypatch, signal.SIGTERM, 0, 0, 0))
    monkeypatch.setattr(Loop, "_save", lambda loop: None)
    loop.display = SimpleNamespace(due=lambda: False)  # type: ignore[assignment]
    with pytest.raises(Interrupted, match="stopped at step 0") as stopped:
        loop._between_steps()
    assert stopped.value.number == signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("Connection closed by peer [127.0.0.1]:29500", "another process has ended"),
        ("Timed out waiting 3600000ms for recv operation to complete", "another process hangs"),
    ],
)
def test_what_a_collective_says_of_another_process_is_one_line(tmp_path, monkeypatch, meetings, error, says):
    def fails(*_):
        raise RuntimeError(f"[gloo/transport/tcp/unbound_buffer.cc:78] {error}")

    monkeypatch.setattr(trainer, "_check_alike", fails)
    with pytest.raises(WorkError, match=says):
        train(small(), tmp_path / "run")


def test_another_number_of_processes_is_said_and_recorded(tmp_path, monkeypatch, capsys):
    run = train(small(procs=0, epochs=1), tmp_path / "run")
    Meetings(monkeypatch)
    capsys.readouterr()
    train(small(), run.path, resume=True)
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if line.startswith("processes: 2 (1 so far")]
    assert len(said) == 1 and "a batch-norm sees 32 images instead of 64" in said[0]
    assert "images that a batch-norm sees: 32 of 64 (those of its process; --sync-bn takes all)" in lines
    sessions = json.loads(run.record_file.read_text())["sessions"]
    first, second = ([{choice["what"]: choice["value"]} for choice in each["choices"]] for each in sessions)
    assert {"processes": "2"} in second and {"images that a batch-norm sees": "32 of 64"} in second
    assert not any("images that a batch-norm sees" in choice for choice in first)


def test_a_training_in_another_thread_leaves_signals_to_the_caller(tmp_path):
    """As in a notebook's server, where Python lets no other thread set handlers."""
    before = {number: signal.getsignal(number) for number in ENDING}
    seen: list[object] = []

    def work() -> None:
        run = train(small(procs=0, epochs=1), tmp_path / "run")
        seen.extend([run.weights_file.exists(), {number: signal.getsignal(number) for number in ENDING}])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, before]


def started_by_another(monkeypatch, world: int, here: int) -> None:
    """As torchrun starts processes, on several machines."""
    values = {
        "TORCHELASTIC_RUN_ID": "other",
        "RANK": "0",
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": here,
        "LOCAL_RANK": 1,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--procs", "2", "--out", "run"),
            "one of 16 processes that a launcher started, and the settings say 2",
        ),
        (("--nodes", "2", "--procs", "4"), "and the settings say 8: leave --nodes, --gpus and --procs out"),
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


@pytest.mark.parametrize(
    ("name", "other"),
    [("seed", "1"), ("extra", "ExtraConfig(data=None, ratio=0.7)"), ("version of torch", "1.0")],
)
def test_processes_with_other_settings_or_versions_are_told_apart(monkeypatch, name, other):
    config = small()
    theirs = trainer._settings(config) | {name: other}
    monkeypatch.setattr(trainer, "decided", lambda decide, world: theirs)
    with pytest.raises(UserError, match=f"process 3 has another {name} than the first one"):
        trainer._check_settings(config, replace(World(torch.device("cpu")), rank=3))
    monkeypatch.setattr(trainer, "decided", lambda decide, world: trainer._settings(config))
    trainer._check_settings(replace(config, data="elsewhere"), World(torch.device("cpu")))


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


class Closed(StepBySize):
    """A step for each size, which tells when it is closed."""

    order: list[str]

    def close(self) -> None:
        self.order.append("graphs given up")
        super().close()


@pytest.mark.parametrize("fails", [False, True])
def test_processes_part_after_their_graphs_and_not_at_all_after_a_failure(tmp_path, monkeypatch, fails):
    """NCCL waits for the graphs that it is part of, and for the others; whoever has failed has to say so."""
    order: list[str] = []

    def start(*args):
        training, eager = start_training(*args)
        step = Closed(lambda: eager)
        step.order = order
        return training, step

    def fail(loop: Loop) -> None:
        raise WorkError("the disk is full")

    monkeypatch.setattr(trainer, "start_training", start)
    monkeypatch.setattr(trainer, "leave_world", lambda world: order.append("left"))
    if fails:
        monkeypatch.setattr(Loop, "fit", fail)
    with pytest.raises(WorkError) if fails else nullcontext():
        train(small(procs=0, epochs=1), tmp_path / "run")
    assert order[:2] == (["graphs given up"] if fails else ["graphs given up", "left"])


def test_a_closed_step_has_no_graph():
    resets: list[str] = []
    nothing: Any = None
    captured = CapturedStep(nothing, nothing)
    captured.graph = SimpleNamespace(reset=lambda: resets.append("reset"))  # type: ignore[assignment]
    steps = StepBySize(lambda: captured)
    steps.steps[torch.Size([8])] = captured
    steps.close()
    steps.close()
    assert resets == ["reset"] and captured.graph is None and not steps.steps
