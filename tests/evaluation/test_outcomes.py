"""What a model got right is kept image by image, and read only where it fits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastarat.common.errors import WorkError
from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.outcomes import described, keep, kept, weights_digest
from tests.helpers.kept import outcomes_of as outcomes_by


@pytest.fixture
def run(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def outcomes_of(run, attack="pgd", num_images=4, num_classes=10, **settings):
    flags = {"clean": np.arange(num_images) % 2 == 0, attack: np.zeros(num_images, bool)}
    attack = described(EvaluationSettings(attack, **settings))
    return outcomes_by(flags, attack, num_classes=num_classes, weights=weights_digest(run))


def test_what_is_kept_is_read_back_the_strongest_first(run):
    for attack in ("pgd", "square", "autoattack"):
        keep(run, outcomes_of(run, attack))
    keep(run, outcomes_of(run, "pgd"))
    found = kept(run)
    assert [outcomes.name for outcomes in found] == ["AutoAttack", "PGD-20", "square"]
    assert found[1].labels.tolist() == [0, 1, 2, 3] and found[1].flags["clean"].tolist() == [True, False, True, False]
    assert found[1].per_class("clean")[:2] == [100.0, 0.0] and found[0].key != found[1].key


def test_what_there_is_to_doubt_is_kept_with_the_images_that_no_attack_could_search(run):
    flags = {"clean": np.array([True, True, True, False]), "pgd": np.array([True, True, False, False])}
    blind = np.array([True, False, False, False])
    keep(run, outcomes_by(flags, weights=weights_digest(run), unsearched=blind, warnings=("It is blind.",)))
    (found,) = kept(run)
    assert found.unsearched.tolist() == blind.tolist() and found.num_unsearched == 1
    assert found.warnings == ("It is blind.",)


def test_what_earlier_weights_came_to_does_not_count(run):
    keep(run, outcomes_of(run))
    earlier = outcomes_of(run, "square")
    (run / "model.safetensors").write_bytes(b"others")
    assert kept(run) == []
    for outcomes in (earlier, replace(earlier, weights="")):
        with pytest.raises(WorkError, match="deploys other weights than were evaluated"):
            keep(run, outcomes)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"unsearched": "01"},
        {"warnings": "none"},
        {"flags": {"clean": "0101", "pgd": "01"}},
        {"flags": {"clean": "0102"}},
        {"flags": {"pgd": "0101"}},
        {"labels": [0, 1, 0, 10]},
        {"labels": []},
        {"attack": {"attacks": ["pgd"], "norm": "linf", "eps_255": 8, "steps": 20}},
        {"attack": {"attacks": ["pgd"], "norm": "linf", "eps_255": 8, "dtype": "fp32", "steps": "many"}},
        {"attack": {"attacks": ["apgd-t"], "norm": "linf", "eps_255": 8, "dtype": "fp32", "targets": "all"}},
        {"classes": [1, 2]},
        {"weights": None},
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_is_left_out_with_a_line(run, change, capsys):
    keep(run, outcomes_of(run))
    (path,) = (run / "outcomes").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert kept(run) == [] and "holds no outcomes of this version: left out" in capsys.readouterr().err


def test_attacks_are_named_as_people_call_them():
    names = ("autoattack", "pgd", "cw", "apgd-ce,square")
    assert [outcomes_of(Path(), name).name for name in names] == [*("AutoAttack", "PGD-20", "CW-20", "apgd-ce,square")]
    assert described(EvaluationSettings("pgd", batch=1, seed=3)) == described(EvaluationSettings("pgd"))


@pytest.mark.parametrize(
    ("settings", "name", "is_standard"),
    [
        ({"attack": "autoattack", "targets": 1}, "AutoAttack, 1 target", False),
        ({"attack": "autoattack", "targets": 3, "dtype": "bf16"}, "AutoAttack, 3 targets, bf16", False),
        ({"attack": "autoattack", "targets": 3, "num_classes": 4}, "AutoAttack", True),
        ({"attack": "autoattack", "targets": 20, "num_classes": 26}, "AutoAttack, 20 targets", True),
        ({"attack": "autoattack,pgd"}, "apgd-ce,apgd-t,fab-t,square,pgd", True),
        ({"attack": "pgd,cw", "steps": 1}, "pgd,cw, PGD of 1 step", False),
        ({"attack": "pgd", "restarts": 5, "step": 0.5 / 255}, "PGD-20, 5 restarts, step 0.5/255", False),
        ({"attack": "pgd", "eps": 0.07, "step": 0.07 / 4}, "PGD-20", False),
    ],
    ids=str,
)
def test_where_an_attack_departs_from_its_name_is_named(settings, name, is_standard):
    outcomes = outcomes_of(Path(), **settings)
    assert (outcomes.name, outcomes.is_standard) == (name, is_standard)


@pytest.mark.parametrize("num_classes", [10, 26])
def test_weaker_attacks_are_less_however_many_and_few_images_less_than_enough(num_classes):
    rising: list[dict] = [
        {"attack": "autoattack", "num_images": 1},
        {"attack": "square", "num_images": 99},
        {"attack": "square"},
        {"attack": "pgd,cw", "steps": 1, "step": 8 / 255},
        {"attack": "pgd", "steps": 50, "restarts": 5, "step": 0.0},
        {"attack": "pgd,cw", "steps": 2, "step": 8 / 255},
        {"attack": "pgd", "steps": 10},
        {"attack": "pgd"},
        {"attack": "pgd", "steps": 10, "restarts": 5},
        {"attack": "apgd-ce"},
        {"attack": "apgd-t", "targets": 3},
        {"attack": "autoattack", "targets": 1},
        {"attack": "autoattack,pgd", "targets": 1},
        {"attack": "autoattack", "targets": 3},
        {"attack": "apgd-t"},
        {"attack": "apgd-ce,apgd-t"},
        {"attack": "autoattack", "dtype": "bf16"},
        {"attack": "autoattack"},
        {"attack": "autoattack", "num_images": 1000},
    ]
    strengths = [
        outcomes_of(Path(), **({"num_images": 100, "num_classes": num_classes} | settings)).strength
        for settings in rising
    ]
    assert strengths == sorted(strengths) and len(set(strengths)) == len(strengths)
