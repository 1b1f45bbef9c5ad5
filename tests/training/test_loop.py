"""The loop: what happens when a compiled step does not come back, and what counts as training time."""

import json
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from fastarat.common.distributed import World
from fastarat.common.errors import Interrupted, WorkError
from fastarat.common.signals import ENDING
from fastarat.config.recipes import recipe
from fastarat.data.open import open_dataset
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from fastarat.training import going_on
from fastarat.training import loop as loop_module
from fastarat.training.build import build_training
from fastarat.training.compiling.compiled import build_step
from fastarat.training.evaluations import Evaluations
from fastarat.training.loop import Loop
from fastarat.training.requests import Requests
from fastarat.training.train import train
from tests.helpers.meetings import small


@pytest.mark.parametrize("stopped", [True, False])
def test_a_compile_that_ctrl_c_ends_is_a_stop_and_not_a_failure(tmp_path, stopped):
    config = replace(recipe("digits-arat"), num_train_images=128)
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")))
    run = Run(tmp_path / "run")
    run.create(config, {})

    def compiler_dies(batch):
        loop.requests.stop_signal = signal.SIGTERM if stopped else 0
        raise WorkError("the step could not be compiled")

    loop = Loop(training, run, compiler_dies, compiles=True)
    with pytest.raises(Interrupted if stopped else WorkError, match="compil"):
        loop.fit()
    assert load_checkpoint(run.checkpoint())["step"] == 0


@pytest.mark.parametrize(("size", "error", "kept"), [(2, WorkError, False), (1, WorkError, True), (2, None, True)])
def test_one_of_several_processes_is_not_ended_by_a_signal_before_it_has_said_why_it_fails(size, error, kept):
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        with nullcontext() if error is None else pytest.raises(error), Requests(None).heard(alone=size == 1):
            assert all(signal.getsignal(number) not in (before[number], signal.SIG_IGN) for number in ENDING)
            if error is not None:
                raise error("the loss is not finite")
        after = {number: signal.getsignal(number) for number in ENDING}
        assert after == (before if kept else dict.fromkeys(ENDING, signal.SIG_IGN))
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def test_an_epochs_seconds_hold_all_but_what_was_compiled_and_its_speed_leaves_that_out(tmp_path, monkeypatch):
    config = replace(recipe("digits-arat"), num_train_images=128, epochs=1, batch=32)
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")))
    run, now = Run(tmp_path / "run"), [0.0]
    run.create(config, {})

    def pass_time(seconds: float, real=lambda *args: None):
        def timed(*args):
            now[0] += seconds
            return real(*args)

        return timed

    step = build_step(training.parts, training.controls, "eager", unroll=True)
    first = iter([100.0])  # of compiling
    loop = Loop(training, run, lambda batch: pass_time(next(first, 2.0), step)(batch), compiles=True)
    monkeypatch.setattr(Evaluations, "measure_balance", pass_time(4.0, Evaluations.measure_balance))
    monkeypatch.setattr(Evaluations, "evaluate", pass_time(1000.0, Evaluations.evaluate))
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    loop.energy = SimpleNamespace(sample=lambda: None, taken=lambda: {"processors": 7.25})
    loop.fit()
    kept = json.loads((tmp_path / "seconds.json").read_text()).popitem()[1]
    assert (kept["first"], kept["slowness"]) == (100, 2)
    entry = training.metrics[0]
    assert entry["seconds"] == 4 + 100 + 3 * 2 and entry["compile_seconds"] == 100
    assert entry["evaluation_seconds"] == 1000 and entry["joules"] == {"processors": 7.2}
    assert entry["images_per_s"] == round(3 * 32 / (4 + 3 * 2), 1)


def test_a_run_that_goes_on_forgets_the_checkpoint_that_it_has_taken_up(tmp_path, monkeypatch):
    class Kept(dict):
        """A dict that can be watched."""

    config = recipe("digits-at")
    config = replace(config, epochs=1, num_train_images=64, batch=64, attack=replace(config.attack, steps=1))
    config = replace(config, evaluation=replace(config.evaluation, num_images=4, num_clean_images=4, steps=1))
    train(config, tmp_path / "run")
    watched, alive = [], []

    def load(path):
        state = Kept(load_checkpoint(path))
        watched.append(weakref.ref(state))
        return state

    monkeypatch.setattr(going_on, "load_checkpoint", load)
    monkeypatch.setattr(Loop, "fit", lambda loop: alive.extend(kept() is not None for kept in watched))
    train(replace(config, epochs=2), tmp_path / "run", resume=True)
    assert alive == [False]


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


def test_a_signal_to_any_process_stops_all_and_gives_its_number(tmp_path, monkeypatch):
    loop = loop_in(tmp_path, with_another(monkeypatch, signal.SIGTERM, 0, 0, 0))
    monkeypatch.setattr(Loop, "_save", lambda loop: None)
    loop.display = SimpleNamespace(due=lambda: False)  # type: ignore[assignment]
    with pytest.raises(Interrupted, match="stopped at step 0") as stopped:
        loop._between_steps()
    assert stopped.value.number == signal.SIGTERM
