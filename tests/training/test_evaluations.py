"""Evaluations of a training: which images they look at, what they say, and which epoch is the best."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fastarat.common.distributed import World
from fastarat.config.recipes import recipe
from fastarat.data.images.dataset import shuffled, subset
from fastarat.data.open import open_dataset
from fastarat.evaluation.accuracies import Accuracy
from fastarat.runs.metrics import are_comparable, doubts
from fastarat.training import evaluations as evaluations_module
from fastarat.training.evaluations import Evaluations
from tests.helpers.host_syncs import QuietLoop


def looked_at(**settings) -> tuple[Evaluations, dict]:
    """Evaluations of a training at its start, and what one says, by a weak attack."""
    config = recipe("digits-arat")
    attacked = {"num_validation_images": settings.pop("num_validation_images", 0)}
    evaluation = replace(config.evaluation, steps=2, step_255=4, **settings)
    # An attack so weak that a net at its start is neither broken nor safe.
    config = replace(config, attack=replace(config.attack, eps_255=0.05), evaluation=evaluation, **attacked)
    evaluations = QuietLoop(config).evaluations
    return evaluations, evaluations.evaluate(evaluations.training.parts.model)


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
    evaluations, result = looked_at(num_images=100, num_clean_images=200, num_validation_images=50)
    assert result["images"] == "validation" and result["num_images"] == result["num_clean_images"] == 50
    assert evaluations.watched is evaluations.training.held_out


def test_what_is_attacked_is_what_a_subset_holds():
    test = open_dataset("digits").test
    ours, theirs = shuffled(test, 10_000, seed=3), subset(test, 100, seed=3)
    assert len(ours.labels) == 360 and not np.array_equal(ours.labels, test.labels)
    assert np.array_equal(ours.images[:100], theirs.images) and np.array_equal(ours.labels[:100], theirs.labels)


def test_an_evaluation_names_what_it_could_not_attack_and_what_predicts_nothing(monkeypatch):
    counted = [Accuracy((5,), (10,), undefined=2, small_logits=3), Accuracy((3,), (10,), undefined=1, not_attackable=3)]
    monkeypatch.setattr(evaluations_module, "accuracies", lambda *given, **settings: counted)
    _, result = looked_at(num_images=100)
    assert (result["robust"], result["not_attackable"], result["undefined_logits"]) == (30, 3, 3)
    assert doubts(result) == " (not attackable: 3, logits NaN or infinite: 3, small logits: probably too high)"
    assert doubts({"robust": 30, "not_attackable": 0}) == ""


def test_images_are_chosen_once_for_all_evaluations():
    evaluations, first = looked_at(num_images=100)
    watched = evaluations.watched
    assert evaluations.evaluate(evaluations.training.parts.model) == first and evaluations.watched is watched


def test_an_epoch_whose_images_no_attack_could_search_is_not_the_best():
    # Percent robust of 100 images, of which so many not attackable.
    found = [{"robust": robust, "not_attackable": number} for robust, number in ((40.0, 0), (90.0, 60), (41.0, 0))]
    assert kept_of(found) == ([40.0, 41.0], [])


def test_an_epoch_that_is_evaluated_otherwise_is_compared_with_those_of_its_kind_alone():
    """As a run that goes on with more --evaluation.steps."""
    found = [{"robust": 45.0, "steps": 10}, {"robust": 44.0, "steps": 10}]
    found += [{"robust": robust, "steps": 50, "attack": "linf"} for robust in (40.0, 39.0, 41.0)]
    found += [{**found[-1], "robust": 5.0, "attack": "l2", "dtype": "bf16"}]
    kept, said = kept_of([*found, {**found[-1], "robust": 4.0, "dtype": "fp32"}])
    assert kept == [45.0, 40.0, 41.0, 5.0, 4.0]
    assert said == ["the best epoch is sought anew: those so far were evaluated otherwise"] * 3


def kept_of(found):
    """The percents of the epochs that were the best so far, and what was said, of evaluations in their order."""
    kept, said = [], []
    training = SimpleNamespace(best_robust=-1.0, state_dict=dict, metrics=[])
    evaluations: Any = object.__new__(Evaluations)
    evaluations.training, evaluations.world = training, World(torch.device("cpu"))
    evaluations.config = SimpleNamespace(num_validation_images=100)
    evaluations.run = SimpleNamespace(save_best=lambda state: kept.append(training.best_robust))
    evaluations.display = SimpleNamespace(note=said.append)
    evaluations._deployed, evaluations.deploy = lambda: None, lambda model: None
    for evaluation in found:
        result = {"num_images": 100, **evaluation}
        training.metrics.append({"evaluation": result})
        evaluations.keep_best(result)
    return kept, said


def test_what_an_evaluation_was_made_by_is_in_its_line():
    lines = [looked_at(num_images=100, **settings)[1] for settings in ({}, {"start": "published-code"}, {"eps_255": 4})]
    assert lines[0]["attack"] == "linf 0.05/255 by 4/255 from uniform" and lines[0]["dtype"] == "fp32"
    assert not any(are_comparable(lines[0], other) for other in lines[1:])
