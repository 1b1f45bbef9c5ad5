"""PGD by which robustness is measured: an image is broken if any iterate is misclassified, the start included.

It does what a careful attacker would where a gradient says nothing. Where an objective's gradient by the logits is
zero, rounded away in part or not finite for an image, as cross-entropy's is for large logits, the image's margin is
raised instead. Where the gradient by the image is zero or NaN all the same, the search goes on by the margin from
another point of the ball.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from fastarat_kernels.pgd_step.ball import ascend, project, uniform_noise
from torch import Tensor

from fastarat.attacks.attack import Attack, Conditions, Cost, Found, nothing_found, searched
from fastarat.attacks.objectives import has_direction, is_known, objective
from fastarat.attacks.pgd import Logits, clean_log_probabilities, loss_scale, start
from fastarat.config.attack import AttackConfig, Objective
from fastarat.config.evaluation import EvaluationSettings
from fastarat.models.predictions import are_right, are_undefined, margins, widened

# The sum of a gradient by logits may be this part of its largest entry, in float32 or wider; roundings come to 1e-6.
ROUNDED_AWAY = 1e-2


class Restart(NamedTuple):
    """What one restart gives for B images."""

    found: Found
    """the last misclassified iterate of each image, the image itself where there is none"""
    undefined: Tensor
    """whether any iterate was misclassified because its logits predict nothing: bool [B]"""
    last: Tensor
    """the last iterates [B, C, H, W]"""


def one_restart(
    logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, attack: AttackConfig, seed: int, restart: int
) -> Restart:
    """The search from a random point of the ball round `x` [B, C, H, W], a function of (seed, restart, row). The host
    waits for nothing.

    `y`: labels, int64 [B]. `rows`: the images' places in the evaluated set, int64 [B].
    """
    x_adv, centre = start(attack, x, rows, restart, seed=seed)
    x_adv = project(x_adv, centre, attack.radius, attack.norm)
    # Where the search goes on that has no gradient.
    aside = uniform_noise(x.shape, attack.start_scale * attack.eps, attack.norm, seed, restart, rows).to(x.dtype)
    constant = clean_log_probabilities(attack, logits_of, centre)
    found, none = nothing_found(x), torch.zeros_like(y, dtype=torch.bool)
    by_margin, undefined = none, none
    for step in range(attack.steps + 1):
        tried, attackable = x_adv, found.attackable
        if step < attack.steps:
            gradient, logits = careful_gradient(attack, logits_of, x_adv, y, constant, by_margin)
            leads = has_direction(gradient)
            moved = torch.where(
                leads.view(-1, 1, 1, 1),
                ascend(x_adv, gradient, attack.step_size, attack.norm),
                centre + aside.flatten(1).roll(step + 1, 1).view_as(x),
            )
            x_adv = project(moved, centre, attack.radius, attack.norm)
            # An infinite margin says nothing of how far the other classes are, whichever way the gradient points.
            searched = leads & is_known(gradient) & margins(logits, y).isfinite()
            by_margin, attackable = by_margin | ~leads, attackable | searched
        else:
            with torch.no_grad():
                logits = logits_of(x_adv)
        wrong, undefined = ~are_right(logits, y), undefined | are_undefined(logits)
        found = Found(torch.where(wrong.view(-1, 1, 1, 1), tried, found.images), found.broken | wrong, attackable)
    return Restart(found, undefined, x_adv)


def careful_gradient(
    settings: AttackConfig, logits_of: Logits, x_adv: Tensor, y: Tensor, constant: Tensor | None, by_margin: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the objective at `x_adv` (its shape and dtype), and the logits there (detached).

    `constant`: see `clean_log_probabilities`. The margin is the objective of the images `by_margin` (bool [B]), and
    where the settings' has no gradient or has lost a part of it.
    """
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        logits = logits_of(leaf)
        own = _by_logits(settings, logits, y, constant)
        margin = _by_logits(replace(settings, objective="margin"), logits, y, None)
        there = own.isfinite().all(1) & has_direction(own.to(logits.dtype)) & _is_whole(own)
        of_logits = torch.where((by_margin | ~there)[:, None], margin, own).to(logits.dtype)
        # Given as such, the gradient by the logits makes torch import SymPy: a second of each run's first evaluation.
        (gradient,) = torch.autograd.grad((logits * of_logits).sum(), leaf)
    return gradient, logits.detach()


def _by_logits(settings: AttackConfig, logits: Tensor, y: Tensor, constant: Tensor | None) -> Tensor:
    """The gradient of the objective by the logits: [B, K], in float32 or wider."""
    leaf = widened(logits.detach()).requires_grad_()
    value = objective(settings.objective, leaf, y, constant)
    return torch.autograd.grad(value * loss_scale(logits), leaf)[0]


def _is_whole(by_logits: Tensor) -> Tensor:
    """Which gradients by logits [B, K] have lost no large part to rounding: bool [B].

    No objective changes if all logits grow alike, so the entries add up to 0. Where the label's probability is nearly 1
    its entry p_y - 1 is rounded to a multiple of 6e-8 in float32, often to 0, and the other entries alone would be
    followed.
    """
    return by_logits.sum(1).abs() <= ROUNDED_AWAY * by_logits.abs().amax(1)


def pgd(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    conditions: Conditions,
    *,
    objective: Objective = "cross-entropy",
) -> Found:
    """`restarts` random starts for images `x` [B, C, H, W], each on those that are not broken yet; as `one_restart`.

    Starts are a function of seed, restart and `rows` (int64 [B]), the images' places in the evaluated set.
    """
    settings = conditions.settings
    eps_255, step_255 = 255 * settings.eps, 255 * settings.step_size
    attack = AttackConfig(
        norm=settings.norm, eps_255=eps_255, step_255=step_255, steps=settings.steps, objective=objective
    )

    def search(restart: int, left: Tensor) -> Found:
        return one_restart(logits_of, x[left], y[left], rows[left], attack, settings.seed, restart).found

    return searched(nothing_found(x), settings.restarts, search)


def _cost(settings: EvaluationSettings) -> Cost:
    steps, restarts = settings.steps, settings.restarts
    return Cost(passes=restarts * (2 * steps + 1), forwards=restarts * (steps + 1))


PGD = Attack(pgd, _cost, feels_scale=True)
CW = Attack(partial(pgd, objective="margin"), _cost)
