"""Which differences between models are beyond noise, of images and of training: McNemar's exact test over the same
images, widened by how far trainings spread, corrected by Holm.

Of two models that are as good as one another, an image that only one gets right is as likely to be the first's as the
second's (McNemar, 1947). Were images right or wrong independently of one another over trainings, the number of the
first's would be binomial with one half for two trainings that differ by their seeds alone too. Long trainings come near
to that (Jordan, 2023, "Calibrated chaos"); others spread more, since a training ends a little better or a little worse
on all images at once. So the test counts each such image as 1 / dispersion of one, where the dispersion says how much
further trainings lie apart than independent images would, as a ratio of variances. Runs of the same settings with
other seeds show it, where they are among those compared; otherwise it is assumed.

A pair of models has two tests, clean and robust, and n models have n (n - 1) / 2 pairs: Holm (1979) keeps the chance
of any false difference at the level.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fastarat.evaluation.outcomes import Outcomes

LEVEL = 0.05
ASSUMED = {"clean": 3.0, "robust": 4.0}
"""the dispersions of trainings that differ by their seeds, where no repeats show them: above what was measured
(docs/report.md)"""
WEIGHT = 6
"""repeats that what is assumed counts as beside those that are there"""


class Difference(NamedTuple):
    """One test of two models."""

    first: str
    second: str
    kind: str
    """clean or robust"""
    num_images: int
    only_first: int
    """images that the first alone gets right"""
    only_second: int
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

    differences: list[Difference]
    dispersion: dict[str, float]
    """of clean and robust"""
    num_repeats: int
    """seeds beyond the first of their settings, which tell of their spread"""

    @property
    def test(self) -> str:
        """The test by its name."""
        spread = ", ".join(f"{value:.1f} for {kind}" for kind, value in self.dispersion.items())
        repeats = f"{self.num_repeats} repeat{'s' if self.num_repeats > 1 else ''} with other seeds"
        source = f"from {repeats} and what is assumed" if self.num_repeats else "assumed, since no seed is repeated"
        return (
            "McNemar's exact test over the same images, widened for the spread of seeds "
            f"(dispersion {spread}, {source}), Holm's correction for {len(self.differences)} tests, "
            f"level {100 * LEVEL:.0f} %"
        )


def mcnemar(only_first: int, only_second: int, dispersion: float = 1.0) -> float:
    """The two-sided p-value for the numbers of images that one model alone gets right, each counted 1 / dispersion.

    With a dispersion of 1 it is McNemar's exact test; with others the binomial's tails go on between whole numbers as
    the incomplete beta function does.
    """
    from scipy.special import betainc

    fewer, both = min(only_first, only_second) / dispersion, (only_first + only_second) / dispersion
    return min(1.0, 2 * float(betainc(both - fewer, fewer + 1, 0.5))) if both else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for their number, in the same order: step-down, never above 1 (Holm, 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def compare(models: Mapping[str, Outcomes], settings: Mapping[str, tuple[str, int]]) -> Comparison:
    """Every pair of models, clean and robust, in their order. All outcomes must have the same `key`.

    `settings`: for each model what is the same for runs that differ by their seeds alone, and its seed. A run beside
    one of the same settings and seed, such as its copy, is no repeat.
    """
    assert len({outcomes.key for outcomes in models.values()}) <= 1
    trained = {settings[name] for name in models}
    num_repeats = len(trained) - len({but_seed for but_seed, _ in trained})
    dispersion = {kind: _dispersion(models, settings, kind, num_repeats) for kind in ASSUMED}
    found = []
    for first, second in combinations(models, 2):
        for kind, allowed in dispersion.items():
            only = _only(models[first], models[second], kind)
            p = mcnemar(*only, allowed)
            found.append(Difference(first, second, kind, len(models[first].labels), *only, p, corrected=p))
    corrected = holm([test.p for test in found])
    tests = [test._replace(corrected=p) for test, p in zip(found, corrected, strict=True)]
    return Comparison(tests, dispersion, num_repeats)


def _dispersion(
    models: Mapping[str, Outcomes], settings: Mapping[str, tuple[str, int]], kind: str, num_repeats: int
) -> float:
    """Of pairs that differ by their seeds the mean of (b - c)^2 / (b + c), which is 1 for independent images, and what
    is assumed, by their weights; at least 1."""
    ratios = []
    for first, second in combinations(models, 2):
        b, c = _only(models[first], models[second], kind)
        (mine, seed), (theirs, other_seed) = settings[first], settings[second]
        if mine == theirs and seed != other_seed and b + c:
            ratios.append((b - c) ** 2 / (b + c))
    weight = num_repeats if ratios else 0
    mean = sum(ratios) / len(ratios) if ratios else 0.0
    return max(1.0, (WEIGHT * ASSUMED[kind] + weight * mean) / (WEIGHT + weight))


def _only(first: Outcomes, second: Outcomes, kind: str) -> tuple[int, int]:
    mine, theirs = ((of.flags["clean"] if kind == "clean" else of.robust) for of in (first, second))
    return int(np.sum(mine & ~theirs)), int(np.sum(theirs & ~mine))


def shared(runs: Mapping[str, Sequence[Outcomes]]) -> dict[str, Outcomes] | None:
    """Of what each run has kept the strongest evaluation that all have, by run; None if there is none."""
    by_key = [{outcomes.key: outcomes for outcomes in reversed(kept)} for kept in runs.values()]
    common = set.intersection(*map(set, by_key)) if by_key else set()
    if not common:
        return None
    best = max(common, key=lambda key: (by_key[0][key].strength, key))
    return {name: of_run[best] for name, of_run in zip(runs, by_key, strict=True)}
