"""When a checkpoint is written: no step waits for it, and whoever knows that the end is near can ask for one."""

import os
import signal
from threading import Event

import pytest

from fastarat.commands import train as train_command
from fastarat.runs import run as run_module
from fastarat.training import requests as requests_module
from fastarat.training.loop import Loop
from tests.helpers.command_line import ONE_EPOCH, state_of


def steps_of(run) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(state_of(file)["step"] for file in (run / "checkpoints").glob("step-*.pt"))


def test_no_step_waits_for_a_disk_that_hangs_and_the_end_does(fastarat, tmp_path, monkeypatch):
    save, works, all_steps = run_module.save_checkpoint, [], Event()
    end_epoch = Loop._end_epoch

    def hang(path, state):
        works.append(all_steps.wait(60))
        save(path, state)

    def after_all_steps(loop):
        assert not works  # the first checkpoint is not written yet
        all_steps.set()
        end_epoch(loop)

    monkeypatch.setattr(run_module, "save_checkpoint", hang)
    monkeypatch.setattr(Loop, "_end_epoch", after_all_steps)
    assert fastarat("train", *ONE_EPOCH, "--checkpoint.every-s", "0", "--out", "run").code == 0
    assert all(works) and steps_of(tmp_path / "run") == [0, 4]


@pytest.mark.parametrize("how", ["signal", "notice"])
def test_a_checkpoint_that_is_asked_for_is_written_and_the_run_goes_on(fastarat, tmp_path, monkeypatch, how):
    between = Loop._between_steps

    def ask(loop):
        if loop.training.step == 2:
            (tmp_path / "notice").touch() if how == "notice" else os.kill(os.getpid(), signal.SIGUSR1)
        between(loop)

    monkeypatch.setattr(Loop, "_between_steps", ask)
    monkeypatch.setattr(requests_module, "_BETWEEN_LOOKS_S", 0)
    flags = ("--checkpoint.keep", "9", "--checkpoint.notice", "notice")
    before = signal.getsignal(signal.SIGUSR1)
    result = fastarat("train", *ONE_EPOCH, *flags, "--out", "run")
    assert result.code == 0 and result.err.count("a checkpoint was asked for, and is written at step 2") == 1
    assert steps_of(tmp_path / "run") == [0, 2, 4] and signal.getsignal(signal.SIGUSR1) == before


def test_a_checkpoint_that_is_asked_for_when_all_is_done_ends_nothing(fastarat, monkeypatch):
    """A scheduler's signal may come while the report is written: its script takes an end by a signal for a requeue."""
    heard = []
    monkeypatch.setattr(train_command, "_report", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append("the default, which is an end"))
    try:
        assert fastarat("train", *ONE_EPOCH, "--out", "run").code == 0
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == []


def test_a_notice_that_cannot_be_looked_for_has_not_come(tmp_path):
    (tmp_path / "file").touch()
    for name in ("x" * 300, tmp_path / "file" / "notice"):  # too long for a name; below what is no folder
        assert not requests_module.Notice(str(name)).has_come()
