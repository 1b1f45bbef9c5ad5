"""APGD-CE and targeted APGD-DLR of the standard AutoAttack (Croce and Hein, 2020): runs of `apgd_search`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fastarat.attacks.apgd_search import (
    COMPACT_EVERY,
    MOMENTUM,
    Search,
    advance,
    begin,
    look_back,
    random_start,
    window_lengths,
)
from fastarat.attacks.attack import Attack, Conditions, Cost, Found, nothing_found, towards_targets, written
from fastarat.attacks.objectives import PointLoss
from fastarat.attacks.pgd import Logits
from fastarat.config.evaluation import NUM_TARGETS, EvaluationSettings


@dataclass(frozen=True)
class Ascent:
    """One run of APGD: what it raises, for how long, and from where."""

    loss: PointLoss
    run: int = 0
    """the start is a function of (seed, run, row)"""
    target: Tensor | None = None
    """of the loss `targeted-dlr`: int64 [B]"""
    steps: int = 100
    start: Tensor | None = None
    """another start within the ball, like the images"""
    compact_every: int = COMPACT_EVERY
    """iterations"""


def apgd(logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, conditions: Conditions, ascent: Ascent) -> Found:
    """One run against images `x` [B, C, H, W] in [0, 1], labels `y` (int64 [B]); both are left as they are.

    `logits_of` maps images to logits [B, K]; of its gradients only the input's is asked for. `rows` (int64 [B]) are the
    images' places in the evaluated set. Broken points leave the state that `show` is given now and then.

    Returns a misclassified iterate of every broken point; the others stay `x`.
    """
    found, places = nothing_found(x), torch.arange(len(x), device=x.device)  # of what is still searched
    if not len(x):
        return found
    norm, eps, seed = conditions.settings.norm, conditions.settings.eps, conditions.settings.seed
    first = random_start(x, rows, norm, eps, seed, ascent.run) if ascent.start is None else ascent.start
    search = begin(logits_of, x, y, y if ascent.target is None else ascent.target, first, eps, ascent.loss)
    windows = window_lengths(ascent.steps)
    conditions.show(0, search)
    for iteration in range(1, ascent.steps + 1):
        step = partial(advance, logits_of, norm=norm, eps=eps, loss=ascent.loss)
        if iteration == 1:  # nothing that is called once is worth a capture
            search = step(search, momentum=0)
        else:
            search = conditions.mover(("apgd", norm, eps, ascent.loss), partial(step, momentum=MOMENTUM), search)
        conditions.show(iteration, search)
        if iteration in windows:
            search = look_back(search, windows[iteration])
        if iteration % ascent.compact_every == 0 or iteration == ascent.steps:
            found = written(found, places, Found(search.found, search.broken, search.attackable))
            kept = (~search.broken).nonzero().flatten()  # the host waits for the device here, and nowhere else in a run
            search, places = Search(*(tensor[kept] for tensor in search)), places[kept]
            if not len(places):
                break
    return found


def apgd_ce(
    logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, conditions: Conditions, *, steps: int = 100
) -> Found:
    """APGD on the cross-entropy, as in the standard AutoAttack; arguments and results are `apgd`'s."""
    return apgd(logits_of, x, y, rows, conditions, Ascent("cross-entropy", steps=steps))


def apgd_t(logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, conditions: Conditions, *, steps: int = 100) -> Found:
    """APGD on the targeted DLR loss, as in the standard AutoAttack; arguments and results are `apgd`'s.

    One run a target (see `towards_targets`); whatever class it then is taken for breaks a point. Raises `UserError` if
    the model has too few classes.
    """

    def search(run: int, left: Tensor, target: Tensor) -> Found:
        ascent = Ascent("targeted-dlr", run=run + 1, target=target, steps=steps)
        return apgd(logits_of, x[left], y[left], rows[left], conditions, ascent)

    return towards_targets("apgd-t", search, logits_of, x, y, conditions, least=APGD_T.fewest_classes)


def _cost_of_targets(settings: EvaluationSettings) -> Cost:
    part = settings.targets / NUM_TARGETS
    return Cost(passes=1829 * part, forwards=909 * part)


APGD_CE = Attack(apgd_ce, lambda settings: Cost(passes=204, forwards=101), feels_scale=True, uses_mover=True)
APGD_T = Attack(apgd_t, _cost_of_targets, fewest_classes=4, uses_mover=True)
