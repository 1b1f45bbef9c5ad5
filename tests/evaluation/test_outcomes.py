"""What a model got right is kept image by image, and read only where it fits."""

import json

import numpy as np
import pytest

from fastarat.config.evaluation import EvaluationSettings
from fastarat.evaluation.outcomes import Outcomes, attack_name, described, keep, kept, weights_digest


@pytest.fixture
def run(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def outcomes_of(run, attack="pgd", num_images=4):
    labels = np.arange(num_images) % 2
    flags = {"clean": labels == 0, attack: np.zeros(num_images, bool)}
    settings = described(EvaluationSettings(attack))
    return Outcomes(settings, "set", "images", weights_digest(run), ("a", "b"), labels, flags)


def test_what_is_kept_is_read_back_the_strongest_first(run):
    for attack in ("pgd", "square", "autoattack"):
        keep(run, outcomes_of(run, attack))
    keep(run, outcomes_of(run, "pgd"))
    found = kept(run)
    assert [outcomes.name for outcomes in found] == ["AutoAttack", "PGD-20", "square"]
    assert found[1].labels.tolist() == [0, 1, 0, 1] and found[1].flags["clean"].tolist() == [True, False, True, False]
    assert found[1].per_class("clean") == [100.0, 0.0] and found[0].key != found[1].key


def test_what_earlier_weights_came_to_does_not_count(run):
    keep(run, outcomes_of(run))
    (run / "model.safetensors").write_bytes(b"others")
    assert kept(run) == []


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"flags": {"clean": "0101", "pgd": "01"}},
        {"flags": {"clean": "0102"}},
        {"flags": {"pgd": "0101"}},
        {"labels": [0, 1, 0, 2]},
        {"labels": []},
        {"attack": {"attacks": ["pgd"], "norm": "linf", "eps_255": 8, "steps": "many"}},
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
    assert [attack_name(described(EvaluationSettings(name))) for name in names] == [
        *("AutoAttack", "PGD-20", "CW-20", "apgd-ce,square")
    ]
    assert described(EvaluationSettings("pgd", batch=1, seed=3)) == described(EvaluationSettings("pgd"))
