"""Whole runs of AutoAttack, with the stored run's seed, judged by how many images they leave robust.

The last count of a standard run must come within one point of percentage, counts before it within two, an attack's
own on all images within two or three: what other seeds and orders of sums change. Where Square alone succeeds, its
count is as noisy as Square is. A run just outside is repeated with two further seeds, and means are judged.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from fastarat.attacks.objectives import margin
from fastarat.common.errors import UserError, unknown
from fastarat.config.evaluation import NUM_TARGETS, STANDARD, EvaluationSettings
from fastarat.evaluation.autoattack.conduct import Conduct
from fastarat.evaluation.autoattack.driver import autoattack
from fastarat.evaluation.autoattack.progress import PASSES
from fastarat.evaluation.result import Evaluation
from fastarat.verification.compare import Count, Row
from fastarat.verification.kit import Kit, Result
from fastarat.verification.nets import image_rows

STAGE, FINAL, SQUARE_ONLY = 2, 1, 3
ALONE = {"apgd-ce": 2, "apgd-t": 2, "fab-t": 3, "square": 3}
WORST_CASE = 2
BATCH = 1000
MORE_SEEDS = 2
# From here on a net hides its gradient from all but Square.
SQUARE_POINTS = 5


class Stage(NamedTuple):
    """A number that a run gives, what is stored, and by how many images they may differ."""

    name: str
    expected: int
    tolerance: int


def images_of(points: float, n: int) -> int:
    """How many images these points of percentage are: one at least, since that is what a single image changes."""
    return max(int(points * n / 100 + 1e-9), 1)


def attack_rows(kit: Kit, result: Result, advance: Callable[[float], None]) -> Iterator[Row | Count]:
    """Rows of one stored run, sequential or individual; `advance` is told of the work: 1 is all on one image."""
    if any(name.startswith("robust_after_") for name in result.stored.arrays):
        yield from _sequential(kit, result, advance)
    else:
        yield from _individual(kit, result, advance)


def attacks_of(result: Result) -> tuple[str, ...]:
    """The attacks of a stored run, in the standard's order. Raises `UserError` if there are none, or unknown ones."""
    flags = [name for name in result.stored.arrays if name.startswith(("robust_after_", "robust_to_"))]
    names = [re.sub("robust_(after|to)_", "", name).replace("_", "-") for name in flags]
    for name in names:
        if name not in ("clean", *STANDARD):
            raise UserError(f"{result.stored.path}: {unknown('attack', name, STANDARD)}")
    if not set(names) - {"clean"}:
        raise UserError(
            f"{result.stored.path} holds no robust_after_ or robust_to_ flags of an attack: is it complete?"
        )
    return tuple(name for name in STANDARD if name in names)


def share_of(attacks: tuple[str, ...]) -> float:
    """The part of the standard's work that these are."""
    return sum(PASSES[name] for name in attacks) / sum(PASSES.values())


class Runs:
    """Runs of our own for a stored one, each with its seed or one further on."""

    def __init__(self, kit: Kit, result: Result, attacks: tuple[str, ...], advance: Callable[[float], None]):
        self.kit, self.result, self.attacks, self.share = kit, result, attacks, share_of(attacks)
        match = re.search(r"seed(\d+)", result.run)
        self.seed = int(match.group(1)) if match else 0
        self.first = self._run(self.seed, lambda amount: advance(amount * self.share))

    def counts(self, number: int) -> dict[str, int]:
        """How many images run `number` leaves; 0 is the first."""
        return (self._run(self.seed + number, lambda amount: None) if number else self.first).counts

    def _run(self, seed: int, advance: Callable[[float], None]) -> Evaluation:
        kit, norm, eps = self.kit, self.result.norm, self.kit.eps(self.result)
        net = kit.net(self.result.net)
        # With fewer than ten classes there are fewer wrong ones to go for.
        targets = min(NUM_TARGETS, net(kit.x[:1]).shape[1] - 1)
        sizes = {"eps": eps, "batch": BATCH, "targets": targets}
        settings = EvaluationSettings(",".join(self.attacks), norm=norm, seed=seed, **sizes)
        return autoattack(net, kit.x, kit.y, settings, conduct=Conduct(advance=advance))


def _sequential(kit: Kit, result: Result, advance: Callable[[float], None]) -> Iterator[Row | Count]:
    attacks, n = attacks_of(result), len(kit.x)
    stored = {name: _robust(result, f"robust_after_{name}", n) for name in ("clean", *attacks)}
    hidden = _taken_by_square(stored, n) >= SQUARE_POINTS
    stages = [Stage(name, stored[name], images_of(STAGE, n)) for name in attacks[:-1]]
    stages.append(Stage(attacks[-1], stored[attacks[-1]], images_of(SQUARE_ONLY if hidden else FINAL, n)))
    runs = Runs(kit, result, attacks, advance)
    yield from judge(stages, result.label, runs.counts)
    yield from image_rows(kit, result, f"{result.label}: our", runs.first.x_adv, runs.first.rows)
    if hidden:
        yield _warnings(kit, result, runs.first.warnings)


def _robust(result: Result, name: str, n: int) -> int:
    return int(result.stored.flags(name.replace("-", "_"), n).sum())


def _taken_by_square(stored: dict[str, int], n: int) -> float:
    """By how many points Square lowered robust accuracy after the other attacks."""
    names = list(stored)
    at = names.index("square") if "square" in names else 0
    return 100 * (stored[names[at - 1]] - stored[names[at]]) / n if at > 1 else 0.0


def judge(stages: list[Stage], label: str, counts: Callable[[int], dict[str, int]]) -> list[Count]:
    """A row per stage. Where some fail, and none by more than its tolerance, the means of more runs decide."""
    runs = [counts(0)]
    rows = _rows(stages, label, runs)
    failing = [row for row in rows if not row.holds]
    if failing and all(row.error <= 2 * row.tolerance for row in failing):
        runs += [counts(number) for number in range(1, MORE_SEEDS + 1)]
        rows = _rows(stages, f"{label}, mean of {len(runs)} seeds", runs)
    return rows


def _rows(stages: list[Stage], label: str, runs: list[dict[str, int]]) -> list[Count]:
    return [
        Count(f"{label}: robust to {name}", sum(run[name] for run in runs) / len(runs), expected, tolerance)
        for name, expected, tolerance in stages
    ]


def _individual(kit: Kit, result: Result, advance: Callable[[float], None]) -> Iterator[Row | Count]:
    n, worst = len(kit.x), torch.ones(len(kit.x), dtype=torch.bool)
    for name in attacks_of(result):
        stage = Stage(name, _robust(result, f"robust_to_{name}", n), images_of(ALONE[name], n))
        runs = Runs(kit, result, (name,), advance)
        yield from judge([stage], result.label, runs.counts)
        worst &= runs.first.flags[name]
    if "robust_worst_case" in result.stored:
        expected = _robust(result, "robust_worst_case", n)
        yield Count(f"{result.label}: robust to all", int(worst.sum()), expected, images_of(WORST_CASE, n))


def _warnings(kit: Kit, result: Result, warnings: tuple[str, ...]) -> Count:
    """Whether Square's success is warned of, and gradients that are zero."""
    words = ["Square"]
    leaf = kit.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(kit.net(result.net)(leaf), kit.y), leaf)
    if not gradient.any():
        words.append("gradient of exactly zero")
    given = sum(any(word in warning for warning in warnings) for word in words)
    return Count(f"{result.label}: warnings of hidden gradients", given, len(words), 0)
