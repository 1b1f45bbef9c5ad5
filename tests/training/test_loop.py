"""The loop: what happens when a compiled step does not come back, and what counts as training time."""

import json
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastarat.common.distributed import World
from fastarat.common.errors import Interrupted, WorkError
from fastarat.common.signals import ENDING
from fastarat.config.recipes import recipe
from fastarat.data.open import open_dataset
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from fastarat.training import loop as loop_module
from fastarat.training import train as trainer
from fastarat.training.build import build_training
from fastarat.training.evaluations import Evaluations
from fastarat.training.loop import Loop
from fastarat.training.step.compiled import build_step
from fastarat.training.train import train


@pytest.mark.parametrize("stopped", [True, False])
def test_a_compile_that_ctrl_c_ends_is_a_stop_and_not_a_failure(tmp_path, stopped):
    config = replace(recipe("digits-arat"), num_train_images=128)
    training = build_training(config, open_dataset("digits"), World(torch.device("cpu")))
    run = Run(tmp_path / "run")
    run.create(config, {})

    def compiler_dies(batch):
        loop.stop_signal = signal.SIGTERM if stopped else 0
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
        with nullcontext() if error is None else pytest.raises(error):
            loop = SimpleNamespace(world=World(torch.device("cpu"), size=size))
            with Loop._signals(loop):  # type: ignore[arg-type]
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

    monkeypatch.setattr(trainer, "load_checkpoint", load)
    monkeypatch.setattr(Loop, "fit", lambda loop: alive.extend(kept() is not None for kept in watched))
    train(replace(config, epochs=2), tmp_path / "run", resume=True)
    assert alive == [False]
