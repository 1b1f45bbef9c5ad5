"""Several processes never wait for each other for ever: what they meet over is decided by one of them."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastarat.common.errors import Interrupted, UserError, WorkError
from fastarat.config import Config
from fastarat.runs.run import Run
from fastarat.training import agreement
from fastarat.training import loop as loop_module
from fastarat.training import reporting as display_module
from fastarat.training import train as trainer
from fastarat.training.evaluations import Evaluations
from fastarat.training.loop import Loop
from fastarat.training.train import train
from tests.helpers.meetings import Meetings, small


@pytest.fixture
def meetings(monkeypatch) -> Meetings:
    return Meetings(monkeypatch)


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
    wishes, opened = [], agreement.open_for_training

    def wished(config, device):
        wishes.append(config.loader)
        return opened(config, device)

    monkeypatch.setattr(agreement, "open_for_training", wished)
    for out in ("first", "second"):
        train(small(epochs=1), tmp_path / out)
        meetings.second()
    meetings.end()
    assert wishes == ["auto", "resident"]


def test_a_process_that_finds_other_images_says_so_before_it_trains(tmp_path, monkeypatch, meetings):
    train(small(epochs=1), tmp_path / "first")
    meetings.second()
    monkeypatch.setattr(agreement, "settings_of", lambda config: {})  # alike, and the images are not: of another disk
    with pytest.raises(UserError, match="process 1 finds other images in digits than the first one"):
        train(small(epochs=1, num_train_images=192), tmp_path / "second")


def test_a_signal_in_an_evaluation_stops_all_processes_there(tmp_path, monkeypatch, meetings):
    """The second one, which it does not reach, learns of it when its share is done."""

    evaluated = Loop._evaluated

    def signalled(loop: Loop) -> dict:
        loop.requests.stop_signal = 0 if meetings.rank else signal.SIGTERM
        return evaluated(loop)

    monkeypatch.setattr(Loop, "_evaluated", signalled)
    for out in ("first", "second"):
        with pytest.raises(Interrupted, match=r"^stopped at step 2 \(evaluating\)$") as stopped:
            train(small(), tmp_path / out)
        assert stopped.value.number == signal.SIGTERM
        meetings.second()
    meetings.end()


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

    monkeypatch.setattr(trainer, "check_alike", fails)
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
