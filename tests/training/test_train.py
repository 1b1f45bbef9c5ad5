"""A training from its beginning to its end: what processes have to have alike, and how they part."""

import signal
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from fastarat.common.distributed import World
from fastarat.common.errors import UserError, WorkError
from fastarat.common.signals import ENDING
from fastarat.training import agreement
from fastarat.training import train as trainer
from fastarat.training.build import start_training
from fastarat.training.choices import Choices, threads
from fastarat.training.compiling.compiled import StepBySize
from fastarat.training.loop import Loop
from fastarat.training.train import train
from tests.helpers.meetings import small


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


def test_another_number_of_threads_and_rounded_convolutions_are_said_of_every_run(tmp_path, monkeypatch, capsys):
    """Of a tuned one too, and of one that goes on."""
    monkeypatch.setattr("fastarat.training.choices.rounded_to_tf32", lambda device: "convolutions")
    monkeypatch.setattr(trainer, "tuned_choices", lambda *_: Choices())
    with threads(1):
        run = train(small(procs=0, epochs=1), tmp_path / "run")
    with threads(2):
        train(small(procs=0, epochs=2), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert said.count("threads: 2 (1 so far: sums are taken in another order, so the weights will differ") == 1
    found = [{choice["what"]: choice["value"] for choice in session["choices"]} for session in run.sessions()]
    assert [one.get("threads") for one in found] == [None, "2"]
    assert [one.get("fp32 convolutions") for one in found] == ["TF32", "TF32"]


@pytest.mark.parametrize(
    ("name", "other"),
    [("seed", "1"), ("extra", "ExtraConfig(data=None, ratio=0.7)"), ("version of torch", "1.0")],
)
def test_processes_with_other_settings_or_versions_are_told_apart(monkeypatch, name, other):
    config = small()
    theirs = agreement.settings_of(config) | {name: other}
    monkeypatch.setattr(agreement, "decided", lambda decide, world: theirs)
    with pytest.raises(UserError, match=f"process 3 has another {name} than the first one"):
        agreement.check_settings(config, replace(World(torch.device("cpu")), rank=3))
    monkeypatch.setattr(agreement, "decided", lambda decide, world: agreement.settings_of(config))
    agreement.check_settings(replace(config, data="elsewhere"), World(torch.device("cpu")))


class Closed(StepBySize):
    """A step for one size, which tells when it is given up."""

    order: list[str]

    def close(self) -> None:
        if self.step is not None:
            self.order.append("graph given up")
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
        loop.training.advance(loop.step, next(iter(loop.training.loader.batches(1))))
        raise WorkError("the disk is full")

    monkeypatch.setattr(trainer, "start_training", start)
    monkeypatch.setattr(trainer, "is_timed", lambda *_: False)  # whose steps would be the first
    monkeypatch.setattr(trainer, "leave_world", lambda world: order.append("left"))
    if fails:
        monkeypatch.setattr(Loop, "fit", fail)
    with pytest.raises(WorkError) if fails else nullcontext():
        train(small(procs=0, epochs=1), tmp_path / "run")
    assert order == (["graph given up"] if fails else ["graph given up", "left"])
