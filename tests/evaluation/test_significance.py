"""Which differences are beyond noise: the exact test, its correction, how often chance is taken for a difference."""

from math import comb

import numpy as np
import pytest
from scipy import stats

from fastarat.evaluation import significance
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
    likely to be right, and to be robust, by the luck of the training, the less the nearer the accuracy is to 0 or 1."""

    def drawn(chances):
        luck = spread * rng.standard_normal() * 4 * chances.mean() * (1 - chances.mean())
        return rng.random(len(chances)) < np.clip(chances + ahead + luck, 0, 1)

    return outcomes(drawn(1 - difficulty / 4), drawn(1 - difficulty))


def others(models):
    """Settings that nobody shares."""
    return {name: (name, 0) for name in models}


def share_of_differences(num_pairs, num_images, spread, seeds=1, ahead=0.0):
    """Of pairs of settings, with so many seeds of each, those that are said to differ."""
    rng, found = np.random.default_rng(0), 0
    difficulty = rng.beta(0.6, 0.8, num_images)
    settings = {f"{name}{seed}": (name, seed) for name in "ab" for seed in range(seeds)}
    for _ in range(num_pairs):
        models = {name: trained(rng, difficulty, ahead * (of == "a"), spread) for name, (of, _) in settings.items()}
        found += any(test.is_beyond_noise for test in compare(models, settings).differences)
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


@pytest.mark.parametrize(
    ("num_images", "spread", "seeds"),
    [(1000, 0.0, 1), (360, ASSUMED, 1), (1000, ASSUMED, 1), (10_000, ASSUMED, 1), (10_000, ASSUMED, 2)],
)
def test_trainings_that_differ_by_their_seeds_are_said_to_be_equal_in_19_of_20_pairs(num_images, spread, seeds):
    assert share_of_differences(400, num_images, spread, seeds) <= 0.05


def test_repeats_keep_to_19_of_20_where_seeds_spread_further_than_is_assumed():
    once, five_times = (share_of_differences(200, 3000, 2 * ASSUMED, seeds) for seeds in (1, 5))
    assert five_times <= 0.05 < once


def test_a_larger_sample_of_images_does_not_tell_seeds_apart(monkeypatch):
    monkeypatch.setattr(significance, "ASSUMED", ASSUMED / 10)
    assert share_of_differences(50, 1000, ASSUMED) < 0.3 < 0.6 < share_of_differences(50, 10_000, ASSUMED)


def test_the_dispersion_of_a_pair_is_that_of_its_images_and_of_the_spread():
    rng = np.random.default_rng(4)
    difficulty = rng.beta(0.6, 0.8, 2000)
    pair = {name: trained(rng, difficulty) for name in "ab"}
    for test in compare(pair, others(pair)).differences:
        share = (test.only_first + test.only_second) / 2000
        right = [of.robust if test.kind == "robust" else of.flags["clean"] for of in pair.values()]
        variances = [(ASSUMED * 4 * of.mean() * (1 - of.mean())) ** 2 for of in right]
        assert test.dispersion == pytest.approx(1 + 2000 * sum(variances) / share)


@pytest.mark.parametrize("ahead", [0.002, 0.01, 0.02])
def test_of_very_many_images_it_is_a_t_test_of_accuracies_whose_spread_is_known_by_six_repeats(ahead, monkeypatch):
    monkeypatch.setattr(significance, "ASSUMED", 0.003)
    place = np.arange(1_000_000)
    first, second = place % 2 == 0, (place % 4 < 2) & (place >= ahead * 2_000_000)  # a quarter each alone, but for it
    pair = {"a": outcomes(first, first), "b": outcomes(second, second)}
    robust = compare(pair, others(pair)).differences[1]
    assert robust.points == pytest.approx(100 * ahead)
    deviation = (2 * 0.003**2 + 0.5 / 1_000_000) ** 0.5
    # The exact test takes half an image more than the normal's tail, of 59 that its deviation counts here.
    assert robust.p == pytest.approx(2 * stats.t.sf(ahead / deviation, df=6), rel=0.08)


def test_among_ten_equal_trainings_a_difference_is_seldom_seen_anywhere():
    rng, found = np.random.default_rng(1), 0
    difficulty = rng.beta(0.6, 0.8, 500)
    for _ in range(40):
        models = {str(i): trained(rng, difficulty, spread=ASSUMED) for i in range(10)}
        found += any(test.is_beyond_noise for test in compare(models, others(models)).differences)
    assert found <= 2  # of 40: the level


def test_repeats_tell_how_far_seeds_spread_and_are_not_tested_against_one_another():
    rng = np.random.default_rng(3)
    difficulty = rng.beta(0.6, 0.8, 1000)
    alike, apart = ({str(i): trained(rng, difficulty, spread=s) for i in range(12)} for s in (0.0, 0.06))
    same = {name: ("same", int(name)) for name in alike}
    narrow, wide = (compare(models, same) for models in (alike, apart))
    assert narrow.num_repeats == 11 and "11 repeats with other seeds" in narrow.test
    assert 0 < narrow.spread["robust"] < 100 * ASSUMED < 3 < wide.spread["robust"] < 9
    assert narrow.differences == wide.differences == [] and wide.trainings == [tuple(apart)]
    assert "no seed is repeated" in compare(alike, others(alike)).test
    assert compare({**alike, "copy": alike["0"]}, {**same, "copy": same["0"]}) == narrow
    one_seed = compare(apart, dict.fromkeys(apart, ("same", 0)))
    assert "no seed is repeated" in one_seed.test and one_seed.spread["robust"] == pytest.approx(100 * ASSUMED)


def test_seeds_near_100_percent_say_little_of_the_spread_in_the_middle():
    """Of 360 images one alone moves an accuracy of 99 % by more than its seeds would."""
    place = np.arange(360)
    right = {"a0": place >= 2, "a1": place >= 5, "b0": place >= 180}
    models = {name: outcomes(of, of) for name, of in right.items()}
    comparison = compare(models, {name: (name[0], int(name[1])) for name in models})
    assert comparison.num_repeats == 1 and comparison.spread["clean"] == pytest.approx(100 * ASSUMED, rel=0.02)


def test_seeds_of_a_setting_are_tested_together():
    rng = np.random.default_rng(5)
    difficulty = rng.beta(0.6, 0.8, 1000)
    models = {name: trained(rng, difficulty) for name in ("a0", "b0", "a1")}
    comparison = compare(models, {name: (name[0], int(name[1])) for name in models})
    assert [(test.first, test.second, test.kind) for test in comparison.differences] == [
        (("a0", "a1"), ("b0",), "clean"),
        (("a0", "a1"), ("b0",), "robust"),
    ]
    clean = comparison.differences[0]
    pairs = [(models[name].flags["clean"], models["b0"].flags["clean"]) for name in ("a0", "a1")]
    assert clean.only_first == pytest.approx(np.mean([np.sum(a & ~b) for a, b in pairs]))
    assert clean.only_second == pytest.approx(np.mean([np.sum(b & ~a) for a, b in pairs]))


def test_with_more_seeds_smaller_differences_are_found():
    one, five = (share_of_differences(60, 3000, 0.007, seeds, ahead=0.03) for seeds in (1, 5))
    assert one < 0.5 < 0.9 < five


def test_a_recipe_that_is_better_by_15_points_is_found_and_named():
    rng = np.random.default_rng(2)
    difficulty = rng.beta(0.6, 0.8, 10_000)
    pair = {"better": trained(rng, difficulty, 0.15), "worse": trained(rng, difficulty)}
    clean, robust = compare(pair, others(pair)).differences
    assert clean.is_beyond_noise and robust.is_beyond_noise
    assert 12 < robust.points < 18 and robust.only_first > robust.only_second and robust.kind == "robust"


def test_three_points_between_95_and_92_percent_are_found_and_between_50_and_47_are_not():
    place = np.arange(10_000)
    for above, is_found in ((0, True), (4500, False)):
        pair = {name: outcomes(of, of) for name, of in (("a", place >= 500 + above), ("b", place >= 800 + above))}
        assert compare(pair, others(pair)).differences[0].is_beyond_noise == is_found


def test_adversarial_against_standard_training_is_found_on_360_images():
    right = np.ones(360, bool)
    pair = {"at": outcomes(right, np.arange(360) < 297), "standard": outcomes(right, np.zeros(360, bool))}
    clean, robust = compare(pair, others(pair)).differences
    assert (robust.only_first, robust.only_second) == (297, 0) and robust.corrected < 1e-4 and clean.p == 1


def test_runs_share_the_strongest_evaluation_of_the_same_images_by_the_same_attack():
    right = np.ones(4, bool)
    weak, strong = outcomes(right, right), outcomes(right, right, ATTACK | {"steps": 50})
    images = outcomes(right, right, images="others")
    assert shared({"a": [strong, weak], "b": [strong, weak]}) == {"a": strong, "b": strong}
    assert shared({"a": [strong, weak], "b": [weak, images]}) == {"a": weak, "b": weak}
    assert shared({"a": [weak], "b": [images]}) is None
