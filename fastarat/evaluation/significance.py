"""Which differences between settings are beyond noise, of images and of training: McNemar's exact test over the same
images, widened by how far trainings spread, corrected by Holm.

Of two models that are as good as one another, an image that only one gets right is as likely to be the first's as the
second's (McNemar, 1947). Were images right or wrong independently of one another over trainings, the number of the
first's would be binomial with one half for two trainings that differ by their seeds alone too. They are not: a training
ends a little better or a little worse on all images at once. So the test counts each such image as 1 / dispersion of
one, where the dispersion says how much further trainings lie apart than independent images would, as a ratio of
variances. For a spread s of a seed's accuracy it is 1 + 2 n s^2 / q, where q is the share of the n images on which two
trainings differ: more images do not tell a lucky training from a better one. The spread is taken to be largest for an
accuracy of one half, and to fall towards 0 and 1 as that of log-odds does.

Runs of the same settings with other seeds stand together, as one model with its mean, and show the spread. What is
assumed of it counts beside them, as the spread of some repeats more (a moderated t-test; Smyth, 2004). They are not
tested against one another: nothing but their seeds differs.

A pair of settings has two tests, clean and robust, and n settings have n (n - 1) / 2 pairs: Holm (1979) keeps the
chance of any false difference at the level.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from fastarat.evaluation.outcomes import Outcomes

LEVEL = 0.05
KINDS = ("clean", "robust")
ASSUMED = 0.015
"""the standard deviation of a seed's accuracy where it is one half, as a fraction, if no repeats show it
(docs/report.md says of which trainings)"""
WEIGHT = 6
"""repeats that what is assumed counts as beside those that are there"""
NUM_SPREADS = 200
"""that a p-value is the mean of"""


class Difference(NamedTuple):
    """One test of the trainings of two settings."""

    first: tuple[str, ...]
    """the runs of the first settings, one for each seed"""
    second: tuple[str, ...]
    kind: str
    """clean or robust"""
    num_images: int
    only_first: float
    """images that the first alone gets right; the mean over pairs of seeds where there are several"""
    only_second: float
    dispersion: float
    """the variance of only_first - only_second, over that of as many independent images"""
    p: float
    """of the test, two-sided"""
    corrected: float
    """the same by Holm, among all tests of the comparison"""

    @property
    def points(self) -> float:
        """By how much the first is ahead, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.num_images

    @property
    def is_beyond_noise(self) -> bool:
        """Whether chance is ruled out at the level."""
        return self.corrected <= LEVEL


class Comparison(NamedTuple):
    """All tests of some models, and what they allow for."""

    evaluation: str
    """which images under which attack, as people say it"""
    differences: list[Difference]
    trainings: list[tuple[str, ...]]
    """the runs of each settings, one for each seed"""
    spread: dict[str, float]
    """standard deviation of a seed's accuracy that is allowed for where it is 50 %, clean and robust, in percentage
    points"""

    @property
    def num_repeats(self) -> int:
        """Seeds beyond the first of their settings, which tell of their spread."""
        return sum(len(names) - 1 for names in self.trainings)

    def left_out(self, names: Iterable[str]) -> list[str]:
        """Those of the runs `names` that have the settings and the seed of another one, in their order."""
        tested = set(chain(*self.trainings))
        return [name for name in names if name not in tested]

    @property
    def test(self) -> str:
        """The test by its name."""
        spread = ", ".join(f"{value:.1f} points {kind}" for kind, value in self.spread.items())
        repeats = f"{self.num_repeats} repeat{'s' if self.num_repeats > 1 else ''} with other seeds"
        source = f"from {repeats} and what is assumed" if self.num_repeats else "assumed, since no seed is repeated"
        return (
            "McNemar's exact test over the same images, widened for the spread of seeds "
            f"({spread} at 50 %, {source}), Holm's correction for {len(self.differences)} tests, "
            f"level {100 * LEVEL:.0f} %"
        )


def mcnemar(only_first: float, only_second: float, dispersion: float | np.ndarray = 1.0) -> np.ndarray:
    """The two-sided p-value for the numbers of images that one model alone gets right, each counted 1 / dispersion, for
    each dispersion: float64 of its shape.

    With a dispersion of 1 it is McNemar's exact test; with others the binomial's tails go on between whole numbers as
    the incomplete beta function does.
    """
    from scipy.special import betainc

    fewer, more = (number / dispersion for number in sorted((only_first, only_second)))
    return np.minimum(1.0, 2 * betainc(more, fewer + 1, 0.5)) if only_first or only_second else np.ones_like(fewer)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for their number, in the same order: step-down, never above 1 (Holm, 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def compare(models: Mapping[str, Outcomes], settings: Mapping[str, tuple[str, int]]) -> Comparison:
    """Every pair of settings, clean and robust, in their order. All outcomes must have the same `key`.

    `settings`: for each model what is the same for runs that differ by their seeds alone, and its seed. A run beside
    one of the same settings and seed, such as its copy, is left out.
    """
    assert len({outcomes.key for outcomes in models.values()}) <= 1
    seeds: dict[str, dict[int, str]] = {}
    for name in models:
        but_seed, seed = settings[name]
        seeds.setdefault(but_seed, {}).setdefault(seed, name)
    trainings = [tuple(by_seed.values()) for by_seed in seeds.values()]
    right = {kind: [np.stack([_right(models[name], kind) for name in names]) for names in trainings] for kind in KINDS}
    spread = {kind: _spread(of) for kind, of in right.items()}
    found = [
        Difference(trainings[i], trainings[j], kind, *_tested(of[i], of[j], *spread[kind]))
        for i, j in combinations(range(len(trainings)), 2)
        for kind, of in right.items()
    ]
    corrected = holm([test.p for test in found])
    tests = [test._replace(corrected=p) for test, p in zip(found, corrected, strict=True)]
    evaluation = _said(next(iter(models.values())))
    return Comparison(evaluation, tests, trainings, {kind: 100 * value for kind, (value, _) in spread.items()})


def _said(outcomes: Outcomes) -> str:
    norm, radius = "L∞" if outcomes.attack["norm"] == "linf" else "L2", outcomes.attack["eps_255"]
    return (
        f"{len(outcomes.labels):,} test images of {outcomes.data} under {outcomes.name} ({norm}, radius {radius:g}/255)"
    )


def _right(outcomes: Outcomes, kind: str) -> np.ndarray:
    return outcomes.flags["clean"] if kind == "clean" else outcomes.robust


def _scale(right: np.ndarray) -> float:
    """How far the luck of a training moves the accuracy of these, bool [seeds, N], against one of one half: as far as
    log-odds would, so that there is little room near 0 and 1."""
    accuracy = float(right.mean())
    return 4 * accuracy * (1 - accuracy)


def _spread(right: Sequence[np.ndarray]) -> tuple[float, float]:
    """The standard deviation of a seed's accuracy where it is one half, from the accuracies of each settings' seeds and
    what is assumed, or from theirs alone where they spread further; and the degrees of freedom that it is known by.

    `right`: for each settings bool [seeds, N]. The chance of single images is in it too and is counted twice so, which
    on few images makes the test a little too careful.
    """
    squares = sum(len(of) * float(of.mean(1).var()) for of in right)
    repeats = sum((len(of) - 1) * _scale(of) ** 2 for of in right)
    with_assumed = (WEIGHT * ASSUMED**2 + squares) / (WEIGHT + repeats)
    return max(with_assumed, squares / max(repeats, 1.0)) ** 0.5, WEIGHT + repeats


def _tested(
    first: np.ndarray, second: np.ndarray, spread: float, freedom: float
) -> tuple[int, float, float, float, float, float]:
    """The numbers of a `Difference`, from which images are right in the trainings of both: bool [seeds, N].

    The spread is known by so many degrees of freedom: the p-value is the mean of those of the spreads that they leave
    open. Where images matter little it is that of a t-test.
    """
    from scipy.special import chdtri

    mine, theirs = first.mean(0), second.mean(0)
    only_first, only_second = float(np.sum(mine * (1 - theirs))), float(np.sum(theirs * (1 - mine)))
    num_images, both = len(mine), only_first + only_second
    if not both:
        return num_images, 0.0, 0.0, 1.0, 1.0, 1.0
    by_images = float(np.sum((mine - theirs) ** 2)) / both
    by_seeds = (num_images * spread) ** 2 * sum(_scale(of) ** 2 / len(of) for of in (first, second)) / both
    # Chances of a wider spread, closer together towards 0: a small p-value comes from the widest ones.
    places = (np.arange(NUM_SPREADS) + 0.5) / NUM_SPREADS
    wider = freedom / chdtri(freedom, 1 - places**4)
    p = float(np.mean(4 * places**3 * mcnemar(only_first, only_second, by_images + by_seeds * wider)))
    return num_images, only_first, only_second, by_images + by_seeds, p, p


def shared(runs: Mapping[str, Sequence[Outcomes]]) -> dict[str, Outcomes] | None:
    """Of what each run has kept the strongest evaluation that all have, by run; None if there is none."""
    by_key = [{outcomes.key: outcomes for outcomes in reversed(kept)} for kept in runs.values()]
    common = set.intersection(*map(set, by_key)) if by_key else set()
    if not common:
        return None
    best = max(common, key=lambda key: (by_key[0][key].strength, key))
    return {name: of_run[best] for name, of_run in zip(runs, by_key, strict=True)}
