"""What would go wrong later is refused before."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastarat.common.errors import UserError
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import Dataset, Images, from_splits
from fastarat.data.open import open_dataset
from fastarat.runs.run import Run
from fastarat.training.loop import Loop
from tests.helpers.command_line import ONE_EPOCH, TINY


def reversed_digits() -> Dataset:
    """The digits in another order: equal shapes, other images."""
    digits = open_dataset("digits")
    train = Images(np.ascontiguousarray(digits.train.images[::-1]), digits.train.labels[::-1].copy())
    return from_splits("digits", train, digits.test, digits.classes, digits.max_value)


def test_a_run_does_not_go_on_with_other_images(fastarat, run, tmp_path, monkeypatch):
    other = reversed_digits()
    monkeypatch.setattr("fastarat.data.formats.find.Found.open", lambda found, size: other)
    result = fastarat("train", "--resume", run, "--epochs", "3")
    assert result.code == 2 and "other images" in result.error and "--data" in result.error


def test_a_run_does_not_end_before_where_it_is(fastarat, run):
    result = fastarat("train", "--resume", run, "--epochs", "1")
    assert result.code == 2 and "--epochs 2 or more" in result.error


def test_two_processes_do_not_train_in_one_directory(fastarat, run):
    other = Run(run)
    other.lock()
    result = fastarat("train", "--resume", run)
    assert result.code == 2 and "another process is training" in result.error
    other.unlock()
    assert fastarat("train", "--resume", run).code == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--averaging.kind", "swa", "--averaging.start-epoch", "1"), "--averaging.every-steps"),
        (("--batch", "1"), "2 or more"),
        (("--procs", "2", "--device", "cuda"), "--gpus"),
        (("--nodes", "2", "--procs", "1"), "--rendezvous HOST:PORT"),
        (("--procs", "2", "--rendezvous", "127.0.0.1:29500"), "--nodes N"),
        (("--nodes", "2", "--rendezvous", "127.0.0.1"), "HOST:PORT"),
        (("--nodes", "4:2", "--rendezvous", "127.0.0.1:29500"), "LEAST:MOST such as 2:4"),
        (("--nodes", "3:4", "--batch", "64", "--rendezvous", "127.0.0.1:29500"), "batch 64 does not divide among 3"),
        (("--max-restarts", "-1"), "--max-restarts -1: give 0 or more"),
        (("--nodes", "2", "--rendezvous", "no-such-host.invalid:29500"), "no way leads there"),
        (("--method.name", "at"), "recipes"),
        (("--out", ""), "--out"),
        (("--optimizer.learning-rate", "1e39"), "smaller"),
        (("--model.name", "wrn-1000000-1"), "depth"),
    ],
)
def test_settings_that_cannot_work_are_refused(fastarat, flags, says):
    result = fastarat("train", *ONE_EPOCH, *flags)
    assert result.code == 2 and says in result.error


def test_the_last_fidelity_given_is_the_one_that_counts(fastarat):
    both = ("--fidelity", "paper", "--fidelity", "published-code")
    assert fastarat("train", *ONE_EPOCH, *both, "--out", "run").code == 0
    assert Run(Path("run")).config().attack.start == "published-code"


def test_weights_that_overflow_leave_a_checkpoint_that_can_go_on(fastarat):
    flags = ("--optimizer.learning-rate", "1e37", "--checkpoint.every-s", "0")
    result = fastarat("train", *TINY, *flags, "--out", "run")
    assert result.code == 1 and "not finite" in result.error
    again = fastarat("train", "--resume", "run", "--optimizer.learning-rate", "0.01")
    assert again.code == 0


def test_the_report_is_that_of_the_deployed_epoch(fastarat):
    result = fastarat("train", *TINY, "--num-validation-images", "100", "--out", "run", "--json")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = max((line["evaluation"]["robust"], -line["epoch"]) for line in lines if "evaluation" in line)
    assert (result.json["robust"], result.json["epoch"]) == (best[0], -best[1])


def test_a_running_session_holds_its_directory(fastarat, monkeypatch):
    def meanwhile(loop: Loop) -> None:
        patch.undo()  # the other one is an ordinary training
        others.append(fastarat("train", "--resume", "held"))

    others = []
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_between_steps", meanwhile)
        assert fastarat("train", *ONE_EPOCH, "--out", "held").code == 0
    (other,) = others
    assert other.code == 2 and "another process is training in held" in other.error


def test_a_set_without_test_images_is_no_set_to_evaluate_on(fastarat, trained, tmp_path):
    np.savez(tmp_path / "made.npz", image=np.zeros((10, 8, 8, 1), np.uint8), label=np.arange(10))
    result = fastarat("eval", trained, "--data", tmp_path / "made.npz", "--attack", "none")
    assert result.code == 2 and "made has no test images: give --data a set of the same classes" in result.error


def test_a_training_on_such_a_set_names_an_evaluation_that_has_images(fastarat, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "made.npz", image=images, label=np.arange(40) % 4)
    flags = ("--batch", "8", "--num-train-images", "16", "--num-validation-images", "8")
    result = fastarat("train", "digits-at", *ONE_EPOCH, *flags, "--data", "made.npz", "--out", "run")
    assert result.code == 0, result.err
    assert "'fastarat eval run --data SET' measures it on a set with test images" in result.err


@pytest.mark.parametrize(("goes_on", "says"), [(True, "another process is training in"), (False, "holds a run")])
def test_of_two_runs_that_begin_in_one_directory_at_once_the_second_writes_nothing(
    tmp_path, monkeypatch, goes_on, says
):
    first, second, lock = Run(tmp_path / "run"), Run(tmp_path / "run"), Run.lock
    digits_at, digits_arat = recipe("digits-at"), recipe("digits-arat")

    def later(run: Run) -> None:
        """Both have found the directory empty, and the first is ahead."""
        monkeypatch.setattr(Run, "lock", lock)
        first.create(digits_at, {})
        if not goes_on:
            first.unlock()
        run.lock()

    monkeypatch.setattr(Run, "lock", later)
    with pytest.raises(UserError, match=says):
        second.create(digits_arat, {})
    assert first.config().recipe == "digits-at" and len(first.sessions()) == 1
