"""A state of a training, measured for every method; nothing of it is moved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastarat.analysis import measure as state
from fastarat.analysis.analyze import described
from fastarat.analysis.batches import attacking, measure_batch, own_conflict
from fastarat.analysis.conflict import cosine
from fastarat.analysis.layers import parameter_groups
from fastarat.analysis.measure import View
from fastarat.analysis.snapshots import reconstruct
from fastarat.common.distributed import World
from fastarat.config.method import ARATConfig
from fastarat.config.recipes import recipe
from fastarat.data.open import open_dataset
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.training.build import build_training
from fastarat.training.state import Training

DIGITS = open_dataset("digits")


def training_of(name: str, **settings) -> Training:
    """A training at its start, with a weak attack and little data, in float64."""
    config = recipe(name)
    config = replace(config, num_train_images=64, batch=16, **settings)
    config = replace(config, attack=replace(config.attack, steps=min(config.attack.steps, 1)))
    return build_training(config, DIGITS, World(torch.device("cpu")), dtype="fp64")


@pytest.mark.parametrize("method", ["at", "arat", "trades", "mart", "lbgat", "arrest", "fgsm-rs", "n-fgsm", "standard"])
def test_every_method_stands_in_the_table(method):
    found = View.of(training_of(f"digits-{method}"), 8, 1, seed=0).measure(lambda work: None)
    means = found["means"]
    for name in ("naive_conflict", "clean_adversarial_conflict", "feature_cosine"):
        assert -1 <= means[name] <= 1
    assert means["mixture_distance"] > 0 and 0 < means["spread"] < 1
    assert (means["branch_cosine"] is not None) == (method == "arat")
    if method in ("at", "fgsm-rs", "n-fgsm", "standard"):
        assert means["gradient_conflict"] is None
    if method in ("arat", "trades", "mart", "arrest"):
        assert -1 <= means["gradient_conflict"] <= 1


@pytest.mark.parametrize("kind", ["split", "shared", "mixed"])
def test_own_conflict_is_of_the_methods_own_terms_and_nothing_is_moved(kind):
    training = training_of("digits-arat", method=ARATConfig(gamma=3, batch_norm=kind, stop_gradient="none"))
    training.parts.method.begin_epoch(torch.tensor(0.4))
    parts = training.parts
    batch = next(training.loader.batches(1))
    modules = [*parts.model.modules(), *parts.method.modules()]
    state = [value.clone() for part in (parts.model, parts.method) for value in part.state_dict().values()]
    modes = [module.training for module in modules]
    measured = measure_batch(training, batch, 0, parts.model.aligned_layers)
    after = [value for part in (parts.model, parts.method) for value in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    assert [module.training for module in modules] == modes
    assert all(parameter.grad is None for parameter in parts.parameters)
    assert set(measured["gradient_conflict"]) == set(parameter_groups(parts.model))

    x_adv = (batch.x + 0.1).clamp(0, 1)
    with batch_norm_mode(parts.model, "frozen"), batch_norm_mode(parts.method, "frozen"):
        found = own_conflict(parts, batch.x, x_adv, batch.y)
        terms = parts.method.terms(parts.model, batch.x, x_adv, batch.y)
        weight = parts.model.conv1.weight
        gradients = [
            torch.autograd.grad(sum(kind.values()), weight, retain_graph=True)[0].flatten()
            for kind in (terms.invariance, terms.classification)
        ]
    assert found["conv1"] == pytest.approx(cosine(*gradients), rel=1e-9)
    assert found["linear"] is None


def test_a_method_that_attacks_nothing_is_measured_under_the_attack_of_evaluations():
    training = training_of("digits-standard")
    parts, controls = attacking(training)
    assert training.parts.attack.steps == 0 and parts.attack.steps == training.config.evaluation.steps
    assert parts.attack.batch_norm == "frozen"
    assert float(controls.eps) == pytest.approx(training.config.eps_255 / 255)


def test_the_same_batches_and_images_are_measured_each_time():
    view = View.of(training_of("digits-at"), 8, 1, seed=1)
    assert view.measure(lambda work: None) == view.measure(lambda work: None)


@pytest.mark.parametrize(("changes", "together"), [({"procs": 2}, 8), ({"procs": 2, "sync_bn": True}, 16), ({}, 16)])
def test_of_a_run_in_several_processes_each_ones_share_is_measured_and_epochs_stay_the_runs(
    changes, together, monkeypatch
):
    seen = []

    def measured(training, batch, number, aligned):
        seen.append({len(tensor) for tensor in batch})
        return measure_batch(training, batch, number, aligned)

    config = replace(recipe("digits-fgsm-rs"), num_train_images=64, batch=16, **changes)
    view = View.of(reconstruct(config, None, torch.device("cpu")), 8, 1, seed=0)
    view.training.step = 6
    monkeypatch.setattr(state, "measure_batch", measured)
    told = []
    assert view.measure(told.append)["epoch"] == 1.5 and sum(told) == view.work
    assert seen == [{together}] and described(Path("run"), view)["batch"] == together


def test_told_work_adds_up():
    view, told = View.of(training_of("digits-arat"), 8, 2, seed=0), []
    view.measure(told.append)
    assert sum(told) == view.work
