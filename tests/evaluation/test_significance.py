"""Which differences are beyond noise: the exact test, its correction, how often chance is taken for a difference."""

from math import comb

import numpy as np
import pytest

from fastarat.evaluation.outcomes import Outcomes
from fastarat.evaluation.significance import differences, holm, mcnemar, shared

ATTACK = {"attacks": ["pgd"], "norm": "linf", "eps_255": 8.0, "steps": 20, "step_255": 2.0, "restarts": 1}


def outcomes(clean, robust, attack=ATTACK, images="these"):
    """Of images of one class."""
    flags = {"clean": clean, "pgd": robust & clean}
    return Outcomes(attack, "set", images, "weights", ("one",), np.zeros(len(clean), np.int64), flags)


def trained(rng, difficulty, shift=0.0):
    """A training of a recipe: each image is right with a probability of its own, independently."""
    right = [rng.random(len(difficulty)) < np.clip(p + shift, 0, 1) for p in (1 - difficulty / 4, 1 - difficulty)]
    return outcomes(*right)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 9), (20, 3), (700, 800), (0, 900)])
def test_the_p_value_is_the_binomials_two_tails(first, second):
    n, k = first + second, min(first, second)
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_trainings_that_differ_by_their_seeds_are_said_to_be_equal_in_19_of_20_pairs():
    rng, false = np.random.default_rng(0), 0
    difficulty = rng.beta(0.6, 0.8, 1000)
    for _ in range(2000):
        pair = {"a": trained(rng, difficulty), "b": trained(rng, difficulty)}
        false += any(test.is_beyond_noise for test in differences(pair))
    assert false <= 0.05 * 2000


def test_among_ten_equal_trainings_a_difference_is_seldom_seen_anywhere():
    rng, false = np.random.default_rng(1), 0
    difficulty = rng.beta(0.6, 0.8, 500)
    for _ in range(40):
        false += any(t.is_beyond_noise for t in differences({str(i): trained(rng, difficulty) for i in range(10)}))
    assert false <= 4  # 2 are expected at the level, and fewer by an exact test


def test_a_recipe_that_is_better_by_three_points_is_found_and_named():
    rng = np.random.default_rng(2)
    difficulty = rng.beta(0.6, 0.8, 10_000)
    clean, robust = differences({"better": trained(rng, difficulty, 0.03), "worse": trained(rng, difficulty)})
    assert clean.is_beyond_noise and robust.is_beyond_noise
    assert 1 < robust.points < 5 and robust.only_first > robust.only_second and robust.kind == "robust"


def test_runs_share_the_strongest_evaluation_of_the_same_images_by_the_same_attack():
    right = np.ones(4, bool)
    weak, strong = outcomes(right, right), outcomes(right, right, ATTACK | {"steps": 50})
    others = outcomes(right, right, images="others")
    assert shared({"a": [strong, weak], "b": [strong, weak]}) == {"a": strong, "b": strong}
    assert shared({"a": [strong, weak], "b": [weak, others]}) == {"a": weak, "b": weak}
    assert shared({"a": [weak], "b": [others]}) is None
