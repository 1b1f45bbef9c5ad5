"""The loop: what happens when a compiled step does not come back, and what evaluations in it look at."""

import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastarat.common.distributed import World
from fastarat.common.errors import Interrupted, WorkError
from fastarat.common.signals import ENDING
from fastarat.config.recipes import recipe
from fastarat.data.images.subset import shuffled, subset
from fastarat.data.open import open_dataset
from fastarat.evaluation.accuracies import Accuracy
from fastarat.runs.checkpoint import load_checkpoint
from fastarat.runs.run import Run
from fastarat.training import loop as loop_module
from fastarat.training import train as trainer
from fastarat.training.build import build_training
from fastarat.training.loop import Loop
from fastarat.training.reporting import doubts
from fastarat.training.step.compiled import build_step
from fastarat.training.train import train
from tests.helpers.host_syncs import QuietLoop


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
    monkeypatch.setattr(Loop, "_measure_balance", pass_time(4.0, Loop._measure_balance))
    monkeypatch.setattr(Loop, "_evaluate", pass_time(1000.0, Loop._evaluate))
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    loop.fit()
    entry = training.metrics[0]
    assert entry["seconds"] == 4 + 100 + 3 * 2 and entry["compile_seconds"] == 100
    assert entry["evaluation_seconds"] == 1000
    assert entry["images_per_s"] == round(3 * 32 / (4 + 3 * 2), 1)


def looked_at(**settings) -> tuple[QuietLoop, dict]:
    """A loop at its start, and what its evaluation says, by a weak attack."""
    config = recipe("digits-arat")
    attacked = {"num_validation_images": settings.pop("num_validation_images", 0)}
    evaluation = replace(config.evaluation, steps=2, step_255=4, **settings)
    # An attack so weak that a net at its start is neither broken nor safe.
    config = replace(config, attack=replace(config.attack, eps_255=0.05), evaluation=evaluation, **attacked)
    loop = QuietLoop(config)
    return loop, loop._evaluate(loop.training.parts.model)


def test_all_test_images_are_measured_clean_and_a_random_part_of_them_is_attacked():
    _, few = looked_at(num_images=100)
    _, everything = looked_at(num_images=360)
    _, result = looked_at(num_images=100, num_clean_images=10_000)
    assert (few["num_images"], few["num_clean_images"]) == (100, 100)
    assert (result["num_images"], result["num_clean_images"]) == (100, 360)
    assert result["clean"] == everything["clean"] != few["clean"]
    assert result["robust"] == few["robust"] != everything["robust"]
    assert result["robust"] > 0


def test_validation_images_fewer_than_asked_for_are_all_measured_and_attacked():
    loop, result = looked_at(num_images=100, num_clean_images=200, num_validation_images=50)
    assert result["images"] == "validation" and result["num_images"] == result["num_clean_images"] == 50
    assert loop._watched is loop.training.held_out


def test_what_is_attacked_is_what_a_subset_holds():
    test = open_dataset("digits").test
    ours, theirs = shuffled(test, 10_000, seed=3), subset(test, 100, seed=3)
    assert len(ours.labels) == 360 and not np.array_equal(ours.labels, test.labels)
    assert np.array_equal(ours.images[:100], theirs.images) and np.array_equal(ours.labels[:100], theirs.labels)


def test_an_evaluation_names_what_it_could_not_attack_and_what_predicts_nothing(monkeypatch):
    counted = [Accuracy((5,), (10,), undefined=2), Accuracy((3,), (10,), undefined=1, not_attackable=3)]
    monkeypatch.setattr(loop_module, "accuracies", lambda *given, **settings: counted)
    _, result = looked_at(num_images=100)
    assert (result["robust"], result["not_attackable"], result["undefined_logits"]) == (30, 3, 3)
    assert doubts(result) == " (not attackable: 3, logits NaN or infinite: 3)"
    assert doubts({"robust": 30, "not_attackable": 0}) == ""


def test_images_are_chosen_once_for_all_evaluations():
    loop, first = looked_at(num_images=100)
    watched = loop._watched
    assert loop._evaluate(loop.training.parts.model) == first and loop._watched is watched


def test_an_epoch_whose_images_no_attack_could_search_is_not_the_best():
    kept = []
    found = [(40.0, 0), (90.0, 60), (41.0, 0)]  # percent robust of 100 images, of which so many not attackable
    training = SimpleNamespace(best_robust=-1.0, state_dict=dict)
    loop = SimpleNamespace(
        training=training,
        world=World(torch.device("cpu")),
        config=SimpleNamespace(num_validation_images=100),
        run=SimpleNamespace(save_best=lambda state: kept.append(training.best_robust)),
        _deployed=lambda: None,
        _write_weights=lambda model: None,
    )
    for robust, number in found:
        result = {"robust": robust, "not_attackable": number, "num_images": 100}
        Loop._keep_best(loop, result)  # type: ignore[arg-type]
    assert kept == [40.0, 41.0]


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
