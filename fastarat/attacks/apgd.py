"""APGD-CE and targeted APGD-DLR of the standard AutoAttack (Croce and Hein, 2020): runs of `apgd_search`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastarat.attacks.apgd_search import MOMENTUM, Search, advance, begin, look_back, random_start, window_lengths
from fastarat.attacks.cuda_graphs import Mover, directly
from fastarat.attacks.found import Found, nothing_found, written
from fastarat.attacks.objectives import PointLoss
from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError
from fastarat.config.attack import Norm
from fastarat.models.predictions import are_right

# Most points that break do so within the first tens of iterations. Dropping them every ten wastes five iterations
# of a hundred on each, and asks the device ten times how many are left: a wait of microseconds beside ten passes.
COMPACT_EVERY = 10


class Outcome(NamedTuple):
    """What is known of all points of a run so far."""

    places: Tensor
    """of the points that are still searched, among all of them: int64"""
    found: Found


Observer = Callable[[int, Search], None]


def apgd(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    norm: Norm,
    eps: float,
    loss: PointLoss,
    seed: int,
    run: int,
    target: Tensor | None = None,
    steps: int = 100,
    start: Tensor | None = None,
    compact_every: int = COMPACT_EVERY,
    show: Observer = lambda iteration, search: None,
    mover: Mover = directly,
) -> Found:
    """One run against images `x` [B, C, H, W] in [0, 1], labels `y` (int64 [B]); both are left as they are.

    `logits_of` maps images to logits [B, K]; of its gradients only the input's is asked for. The start is a function
    of (seed, run, row), `rows` (int64 [B]) being the images' places in the evaluated set, unless `start` (like `x`,
    within the ball) is given. The loss `targeted-dlr` needs `target` (int64 [B]). `show` is given each iteration's
    number and state, from 0 for the start; broken points leave the state now and then. `mover` calls what leads from
    one iterate to the next.

    Returns a misclassified iterate of every broken point; the others stay `x`.
    """
    outcome = Outcome(torch.arange(len(x), device=x.device), nothing_found(x))
    if not len(x):
        return outcome.found
    first = random_start(x, rows, norm, eps, seed, run) if start is None else start
    search = begin(logits_of, x, y, y if target is None else target, first, eps, loss)
    windows = window_lengths(steps)
    show(0, search)
    for iteration in range(1, steps + 1):
        step = partial(advance, logits_of, norm=norm, eps=eps, loss=loss)
        if iteration == 1:  # nothing that is called once is worth a capture
            search = step(search, momentum=0)
        else:
            search = mover(("apgd", norm, eps, loss), partial(step, momentum=MOMENTUM), search)
        show(iteration, search)
        if iteration in windows:
            search = look_back(search, windows[iteration])
        if iteration % compact_every == 0 or iteration == steps:
            search, outcome = compact(search, outcome)
            if not len(outcome.places):
                break
    return outcome.found


def apgd_ce(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int,
    steps: int = 100,
    show: Observer = lambda iteration, search: None,
    mover: Mover = directly,
) -> Found:
    """APGD on the cross-entropy, as in the standard AutoAttack; arguments and results are `apgd`'s."""
    settings = {"norm": norm, "eps": eps, "seed": seed, "steps": steps, "show": show, "mover": mover}
    return apgd(logits_of, x, y, rows, loss="cross-entropy", run=0, **settings)


def apgd_t(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    norm: Norm,
    eps: float,
    seed: int,
    num_targets: int = 9,
    steps: int = 100,
    clean_logits: Tensor | None = None,
    show: Observer = lambda iteration, search: None,
    mover: Mover = directly,
) -> Found:
    """APGD on the targeted DLR loss, as in the standard AutoAttack; arguments and results are `apgd`'s.

    One run for each of the `num_targets` wrong classes that the clean image is likeliest taken for, on the points
    that the runs before left; whatever class it then is taken for breaks a point. An image that is misclassified as it
    is counts as broken, by itself. `clean_logits` [B, K] saves their computation.
    """
    if clean_logits is None:
        with torch.no_grad():
            clean_logits = logits_of(x)
    targets = likeliest_wrong_classes(clean_logits, num_targets)
    found = nothing_found(x)._replace(broken=~are_right(clean_logits, y))
    settings = {"norm": norm, "eps": eps, "seed": seed, "steps": steps, "show": show, "mover": mover}
    attack = partial(apgd, logits_of, loss="targeted-dlr", **settings)
    for run in range(num_targets):
        left = (~found.broken).nonzero().flatten()
        now = attack(x[left], y[left], rows[left], run=run + 1, target=targets[left, run])
        found = written(found, left, now._replace(attackable=now.attackable | found.attackable[left]))
    return found


def likeliest_wrong_classes(clean_logits: Tensor, num_targets: int) -> Tensor:
    """Classes of the 2nd, 3rd, ... largest of logits [B, K]: int64 [B, num_targets]. Raises `UserError` for too few.

    Of a correctly classified image these are wrong ones.
    """
    num_classes, needed = clean_logits.shape[1], max(num_targets + 1, 4)
    if num_classes < needed:
        raise UserError(
            f"{num_targets} targets with the targeted DLR loss need {needed} classes or more, "
            f"and the model has {num_classes}: take fewer targets or another attack"
        )
    return clean_logits.topk(num_targets + 1).indices[:, 1:]


def compact(search: Search, outcome: Outcome) -> tuple[Search, Outcome]:
    """Write down what the search has, and drop its broken points."""
    found = written(outcome.found, outcome.places, Found(search.found, search.broken, search.attackable))
    kept = (~search.broken).nonzero().flatten()  # the host waits for the device here, and nowhere else in a run
    return Search(*(tensor[kept] for tensor in search)), Outcome(outcome.places[kept], found)
