"""Which differences are beyond noise: the exact test, its correction, how often chance is taken for a difference."""

from math import comb

import numpy as np
import pytest

from fastarat.evaluation.significance import ASSUMED, compare, holm, mcnemar, shared
from tests.helpers.kept import outcomes_of

ATTACK = {
    "attacks": ["pgd"],
    "norm": "linf",
    "eps_255": 8.0,
    "steps": 20,
    "step_255": 2.0,
    "restarts": 1,
    "dtype": "fp32",
}


def outcomes(clean, robust, attack=ATTACK, images="these"):
    """Of images of one class."""
    return outcomes_of({"clean": clean, "pgd": robust & clean}, attack, num_classes=1, images=images)


def trained(rng, difficulty, ahead=0.0, spread=0.0):
    """A training of a recipe: each image is right with a probability of its own, and all are a little more or less
    likely to be robust, by the luck of the training."""
    luck = ahead + spread * rng.standard_normal()
    clean = rng.random(len(difficulty)) < np.clip(1 - difficulty / 4 + ahead, 0, 1)
    return outcomes(clean, rng.random(len(difficulty)) < np.clip(1 - difficulty + luck, 0, 1))


def others(models):
    """Settings that nobody shares."""
    return {name: (name, 0) for name in models}


def share_of_differences(num_pairs, num_images, spread, seed=0):
    """Of pairs that differ by their seeds, those that are said to differ."""
    rng, found = np.random.default_rng(seed), 0
    difficulty = rng.beta(0.6, 0.8, num_images)
    for _ in range(num_pairs):
        pair = {name: trained(rng, difficulty, spread=spread) for name in "ab"}
        found += any(test.is_beyond_noise for test in compare(pair, others(pair)).differences)
    return found / num_pairs


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (1, 9), (20, 3), (700, 800), (0, 900)])
def test_without_dispersion_the_p_value_is_the_binomials_two_tails(first, second):
    n, k = first + second, min(first, second)
    tail = sum(comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_a_dispersion_counts_images_as_fewer():
    assert mcnemar(80, 40, 4.0) == pytest.approx(mcnemar(20, 10))
    assert mcnemar(30, 10, 1.0) < mcnemar(30, 10, 1.5) < mcnemar(30, 10, 2.0) < 1


def test_holm_multiplies_the_smallest_by_their_number_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(("num_images", "spread"), [(1000, 0.0), (1000, 0.015), (360, 0.025)])
def test_trainings_that_differ_by_their_seeds_are_said_to_be_equal_in_19_of_20_pairs(num_images, spread):
    assert share_of_differences(1000, num_images, spread) <= 0.05


def test_without_the_dispersion_they_would_not_be(monkeypatch):
    monkeypatch.setitem(ASSUMED, "robust", 1.0)
    assert share_of_differences(200, 1000, 0.03) > 0.15


def test_among_ten_equal_trainings_a_difference_is_seldom_seen_anywhere():
    rng, found = np.random.default_rng(1), 0
    difficulty = rng.beta(0.6, 0.8, 500)
    for _ in range(40):
        models = {str(i): trained(rng, difficulty, spread=0.015) for i in range(10)}
        found += any(test.is_beyond_noise for test in compare(models, others(models)).differences)
    assert found <= 2  # of 40: the level


def test_repeats_tell_how_far_seeds_spread():
    rng = np.random.default_rng(3)
    difficulty = rng.beta(0.6, 0.8, 1000)
    alike, apart = ({str(i): trained(rng, difficulty, spread=s) for i in range(12)} for s in (0.0, 0.06))
    same = {name: ("same", int(name)) for name in alike}
    narrow, wide = (compare(models, same) for models in (alike, apart))
    assert narrow.num_repeats == 11 and "11 repeats with other seeds" in narrow.test
    assert 1 <= narrow.dispersion["robust"] < ASSUMED["robust"] < wide.dispersion["robust"]
    assert "no seed is repeated" in compare(alike, others(alike)).test
    assert not any(test.is_beyond_noise for of in (narrow, wide) for test in of.differences)
    with_copy = compare({**alike, "copy": alike["0"]}, {**same, "copy": same["0"]})
    assert with_copy.num_repeats == 11 and with_copy.dispersion["robust"] == pytest.approx(
        narrow.dispersion["robust"], abs=0.1
    )
    one_seed = compare(apart, dict.fromkeys(apart, ("same", 0)))
    assert "no seed is repeated" in one_seed.test and one_seed.dispersion == ASSUMED


def test_a_recipe_that_is_better_by_three_points_is_found_and_named():
    rng = np.random.default_rng(2)
    difficulty = rng.beta(0.6, 0.8, 10_000)
    pair = {"better": trained(rng, difficulty, 0.03), "worse": trained(rng, difficulty)}
    clean, robust = compare(pair, others(pair)).differences
    assert clean.is_beyond_noise and robust.is_beyond_noise
    assert 1 < robust.points < 5 and robust.only_first > robust.only_second and robust.kind == "robust"


def test_runs_share_the_strongest_evaluation_of_the_same_images_by_the_same_attack():
    right = np.ones(4, bool)
    weak, strong = outcomes(right, right), outcomes(right, right, ATTACK | {"steps": 50})
    images = outcomes(right, right, images="others")
    assert shared({"a": [strong, weak], "b": [strong, weak]}) == {"a": strong, "b": strong}
    assert shared({"a": [strong, weak], "b": [weak, images]}) == {"a": weak, "b": weak}
    assert shared({"a": [weak], "b": [images]}) is None
