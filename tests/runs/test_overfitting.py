"""Catastrophic overfitting of one-step training is noticed in a run's own numbers, and said once."""

import json
from dataclasses import replace

import pytest

from fastarat.config import Config
from fastarat.config.recipes import recipe
from fastarat.config.training import EvaluationConfig, ScheduleConfig
from fastarat.runs import metrics
from fastarat.training.train import train


def marks(history):
    """(marked, said) of each line of a run with these (one-step training, robust held-out) percents; None: not
    evaluated; robust may be (percent, how many of 100 images no attack could search)."""
    entries, found = [], []
    for epoch, (one_step, robust) in enumerate(history, start=1):
        entry = {"epoch": epoch, "train": {"adversarial_accuracy": one_step / 100}}
        if robust is not None:
            robust, missed = robust if isinstance(robust, tuple) else (robust, 0)
            entry["evaluation"] = {"robust": robust, "steps": 10, "num_images": 100, "not_attackable": missed}
        entries.append(entry)
        if metrics.has_overfitted(entries):
            entry["catastrophic_overfitting"] = True
        found.append((bool(entry.get("catastrophic_overfitting")), metrics.overfitting_begins(entries)))
    return found


SOUND = (False, False)


def test_a_collapse_is_marked_at_every_evaluation_and_said_at_its_start():
    found = marks([(30, 32), (38, 38), (44, 42), (62, 11), (88, 0.4), (93, 0.0)])
    assert found == [SOUND, SOUND, SOUND, (True, True), (True, False), (True, False)]


def test_a_net_that_recovers_and_collapses_again_is_said_to_twice():
    found = marks([(44, 42), (80, 2), (48, 37), (75, 9)])
    assert found == [SOUND, (True, True), SOUND, (True, True)]


def test_a_stronger_evaluation_is_no_collapse():
    found = [{"robust": 42.0, "steps": 10}, {"robust": 20.0, "steps": 100}]
    one_step = {"adversarial_accuracy": 0.44}
    assert not metrics.has_overfitted([{"train": one_step, "evaluation": {"num_images": 100, **one}} for one in found])


def test_epochs_without_an_evaluation_say_nothing_and_begin_nothing():
    found = marks([(44, 42), (70, None), (80, 1), (90, None), (95, 0)])
    assert found == [SOUND, SOUND, (True, True), SOUND, (True, False)]


def test_a_collapse_is_seen_where_attacks_find_no_way_into_the_net():
    assert marks([(44, 42), (88, (85, 84))]) == [SOUND, (True, True)]
    evaluation = {"robust": 85.0, "steps": 10, "num_images": 100, "not_attackable": 84}
    said = metrics.overfitting_sentence({"epoch": 2, "train": {"adversarial_accuracy": 0.88}, "evaluation": evaluation})
    assert "85.0 % under 10 steps (not attackable: 84)" in said


def test_a_run_that_is_evaluated_too_late_is_caught_all_the_same():
    assert marks([(94, 0.3)]) == [(True, True)]


@pytest.mark.parametrize(
    "history",
    [
        [(30, 35), (50, 47), (70, 46), (85, 43)],  # robust overfitting: sound
        [(90, 20.0)],  # CIFAR-100, learnt by heart
        [(9, 0.0), (18, 0.5), (30, 15)],  # the first epochs of a hard task
        [(40, 40), (38, 15), (42, 41)],  # a bad epoch, but not better under its own attack than before
    ],
    ids=["robust overfitting", "by heart", "beginning", "noise"],
)
def test_other_gaps_between_training_and_evaluation_are_not_taken_for_it(history):
    marked = marks(history)
    assert marked[-1] == SOUND
    assert history[1:] == [(38, 15), (42, 41)] or marked == [SOUND] * len(history)


def test_runs_with_several_steps_or_one_step_evaluations_are_not_watched():
    assert metrics.may_overfit(recipe("digits-fgsm-rs")) and metrics.may_overfit(recipe("cifar10-tiny-n-fgsm"))
    assert not metrics.may_overfit(Config()) and not metrics.may_overfit(recipe("digits-standard"))
    assert not metrics.may_overfit(replace(recipe("digits-fgsm-rs"), evaluation=EvaluationConfig(steps=1)))


@pytest.mark.slow
def test_fgsm_without_a_start_overfits_the_digits_catastrophically_and_the_run_says_so(tmp_path, capsys):
    config = recipe("digits-fgsm-rs")
    config = replace(
        config,
        epochs=12,
        attack=replace(config.attack, start="none", eps_255=125.0, step_255=125.0),
        schedule=ScheduleConfig("constant"),
        evaluation=replace(config.evaluation, every_epochs=2, num_images=100, step_255=30.0),
    )
    run = train(config, tmp_path / "run")
    lines = run.metrics()
    marked = [line["epoch"] for line in lines if line.get("catastrophic_overfitting")]
    assert marked and all("evaluation" in lines[epoch - 1] for epoch in marked)
    said = [line for line in capsys.readouterr().err.splitlines() if "catastrophic overfitting" in line]
    assert len(said) >= 1 and f"at epoch {marked[0]}" in " ".join(said)
    events = json.loads(run.record_file.read_text())["sessions"][-1]["events"]
    assert events[0].startswith(f"catastrophic overfitting at epoch {marked[0]}: ")
