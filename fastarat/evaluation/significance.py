"""Which differences between models are beyond noise: McNemar's exact test over the same images, corrected by Holm.

Of two models that are as good as one another, an image that only one gets right is as likely to be the first's as the
second's (McNemar, 1947): the number of the first's is binomial with one half. That holds for two trainings that differ
by their seeds alone as well, as far as whether an image is right is independent between images over trainings, which
Jordan (2023, "Calibrated chaos") found to be near the truth. A pair of models has two tests, clean and robust, and n
models have n (n - 1) / 2 pairs: Holm (1979) keeps the chance of any false difference at the level.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fastarat.evaluation.outcomes import Outcomes

LEVEL = 0.05
TEST = "McNemar's exact test over the same images, Holm's correction, level 5 %"


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
    """of McNemar's test, two-sided"""
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


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value for the numbers of images that one model alone gets right."""
    from scipy.special import bdtr

    # Half and half is symmetric: both tails are twice the smaller number's.
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for their number, in the same order: step-down, never above 1 (Holm, 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def differences(models: Mapping[str, Outcomes]) -> list[Difference]:
    """Every pair of models, clean and robust, in their order. All outcomes must have the same `key`."""
    assert len({outcomes.key for outcomes in models.values()}) <= 1
    found = []
    for (first, a), (second, b) in combinations(models.items(), 2):
        for kind, mine, theirs in (("clean", a.flags["clean"], b.flags["clean"]), ("robust", a.robust, b.robust)):
            only_first, only_second = int(np.sum(mine & ~theirs)), int(np.sum(theirs & ~mine))
            p = mcnemar(only_first, only_second)
            found.append(Difference(first, second, kind, len(mine), only_first, only_second, p, corrected=p))
    corrected = holm([test.p for test in found])
    return [test._replace(corrected=p) for test, p in zip(found, corrected, strict=True)]


def shared(runs: Mapping[str, Sequence[Outcomes]]) -> dict[str, Outcomes] | None:
    """Of what each run has kept the strongest evaluation that all have, by run; None if there is none."""
    by_key = [{outcomes.key: outcomes for outcomes in reversed(kept)} for kept in runs.values()]
    common = set.intersection(*map(set, by_key)) if by_key else set()
    if not common:
        return None
    best = max(common, key=lambda key: (by_key[0][key].strength, key))
    return {name: of_run[best] for name, of_run in zip(runs, by_key, strict=True)}
