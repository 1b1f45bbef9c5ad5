"""What a line of a run's metrics says of its evaluation."""

import pytest

from fastarat.config.attack import AttackConfig
from fastarat.runs.metrics import accuracies, attack_name
from fastarat.training.evaluations import _described


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ({}, "PGD-10"),
        ({"eps_255": 45.9}, "PGD-10"),
        ({"norm": "l2", "eps_255": 100 / 3}, "PGD-10"),  # a quarter of it has more digits than are written
        ({"eps_255": 45.9, "step_255": 0.5}, "PGD-10, step 0.5/255"),
        ({"step_255": 1e-5}, "PGD-10, step 1e-05/255"),
        ({"start": "published-code"}, "PGD-10, ball round the noisy start"),
        ({"step_255": 1.0, "start": "published-code"}, "PGD-10, step 1/255, ball round the noisy start"),
    ],
    ids=str,
)
def test_where_an_evaluation_departs_from_the_name_of_its_attack_is_named(attack, name):
    written = _described(AttackConfig(**attack).resolved())
    assert attack_name({"steps": 10, "attack": written}) == name


@pytest.mark.parametrize(("dtype", "name"), [("fp32", "PGD-10"), ("bf16", "PGD-10, bf16"), ("fp64", "PGD-10, fp64")])
def test_a_number_format_that_is_not_float32_is_named(dtype, name):
    assert attack_name({"steps": 10, "dtype": dtype}) == name
    weak = _described(AttackConfig(step_255=1.0).resolved())
    assert attack_name({"steps": 10, "attack": weak, "dtype": dtype}) == name.replace("PGD-10", "PGD-10, step 1/255")


def test_a_line_names_images_attack_and_doubts():
    held = {"images": "validation", "num_images": 9, "steps": 3, "clean": 80.04, "robust": 40.0, "not_attackable": 2}
    assert accuracies(held) == "validation: clean 80.0 %, PGD-3 40.0 % (not attackable: 2)"
