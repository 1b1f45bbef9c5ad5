"""Auto-PGD (Croce and Hein, 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks"): gradient ascent with momentum whose step size halves when the ascent stalls.

With P the projection into the ball round x and [0, 1], and d the direction of steepest ascent (the gradient's sign,
or the gradient over its L2 norm), iterate i + 1 is

    v = P(x_i + s d),    x_{i+1} = P(x_i + a (v - x_i) + (1 - a)(x_i - x_{i-1})),    a = 0.75 (1 at first),

from a random x_0 on the ball's surface, cut to [0, 1]. The step size s is a point's own, at first 2 eps. At the end of
ever shorter windows of iterations it is halved, and the search goes back to its best iterate, where the loss rose in
at most 75 % of the window's iterations, or where s was not halved at the last look and the best loss is still the same.
A point is broken if any iterate was misclassified.

Where a gradient is not finite the standard says nothing: its finite part is followed, and where there is none the
search goes on from another point of the ball. A gradient of exactly zero keeps a search where it is, as in the
standard.
"""

from typing import NamedTuple

import torch
from fastarat_kernels import philox
from fastarat_kernels.pgd_step.ball import finite_gradient, norms, project
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.attacks.objectives import TINY, PointLoss, has_direction, is_known, is_lost, moved_on, point_losses
from fastarat.attacks.pgd import Logits
from fastarat.config.attack import Norm
from fastarat.models.predictions import are_right

MOMENTUM = 0.25
RISING = 0.75
# Most points that break do so within the first tens of iterations. Dropping them every ten wastes five iterations
# of a hundred on each, and asks the device ten times how many are left: a wait of microseconds beside ten passes.
COMPACT_EVERY = 10
# A direction is about 1 long. One whose entries are all smaller than this moves no pixel of a float32 image.
NO_MOVE = 1e-6


class Search(NamedTuple):
    """The state of a run, all tensors of one row a point; images [B, C, H, W]."""

    x: Tensor
    y: Tensor
    """int64 [B]"""
    target: Tensor
    """int64 [B]; y where the loss has none"""
    x_adv: Tensor
    previous: Tensor
    """the iterate before `x_adv`"""
    gradient: Tensor
    """of the loss at `x_adv`"""
    step_size: Tensor
    """[B, 1, 1, 1]"""
    loss: Tensor
    """of the last iterate, [B]; 0 before the first one that counts"""
    num_rises: Tensor
    """how often the loss rose in this window, int64 [B]"""
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    halved: Tensor
    """at the last window's end, bool [B]"""
    best_loss_then: Tensor
    """at the last window's end, [B]"""
    found: Tensor
    """the last misclassified iterate, or x"""
    broken: Tensor
    """whether any iterate was misclassified, bool [B]"""
    attackable: Tensor
    """whether any iterate had a direction to follow that was known in full, bool [B]"""
    shift: Tensor
    """from x to where the search goes on if there is none"""


def random_start(x: Tensor, rows: Tensor, norm: Norm, eps: float, seed: int, run: int) -> Tensor:
    """Points on the surface of the balls round `x`, cut to [0, 1]: each is a function of (seed, run, row)."""
    return (x + random_shift(x, rows, norm, eps, seed, run)).clamp(0, 1)


def random_shift(x: Tensor, rows: Tensor, norm: Norm, eps: float, seed: int, run: int) -> Tensor:
    """From images like `x` [B, C, H, W] to points on their balls' surfaces: [N, C, H, W] for `rows` (int64 [N])."""
    image = tuple(x.shape[1:])
    if norm == "linf":
        noise = 2 * philox.uniform(seed, Stream.APGD_START, run, rows, image).to(x.dtype) - 1
        length = noise.abs().amax((1, 2, 3), keepdim=True)
    else:
        noise = philox.normal(seed, Stream.APGD_START, run, rows, image).to(x.dtype)
        length = norms(noise)
    return eps * (noise / (length + TINY))


def window_lengths(steps: int) -> dict[int, int]:
    """After which iterations the search looks back, and over how many: 22, 19, ... 6, 6 for 100 steps."""
    length, shrinkage, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    windows, end = {}, length
    while end <= steps:
        windows[end] = length
        length = max(length - shrinkage, least)
        end += length
    return windows


def evaluate(
    logits_of: Logits, x_adv: Tensor, y: Tensor, target: Tensor, loss: PointLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """At each point: its loss [B], the loss's gradient [B, C, H, W], and whether it is misclassified (bool [B])."""
    with torch.enable_grad():
        leaf = x_adv.detach().requires_grad_()
        logits = logits_of(leaf)
        losses = point_losses(loss, logits, y, target)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    # A model that works on channels-last images returns such a gradient; mixed formats would be slow.
    return losses.detach(), gradient.contiguous(), ~are_right(logits.detach(), y)


def begin(
    logits_of: Logits, x: Tensor, y: Tensor, target: Tensor, start: Tensor, eps: float, loss: PointLoss
) -> Search:
    """The state at iterate 0."""
    losses, gradient, wrong = evaluate(logits_of, start, y, target, loss)
    return Search(
        x=x,
        y=y,
        target=target,
        x_adv=start,
        previous=start,
        gradient=gradient,
        step_size=x.new_full((len(x), 1, 1, 1), 2 * eps),
        # The standard's history of losses begins with iterate 1; the slot before it that it compares with holds 0.
        loss=torch.zeros_like(losses),
        num_rises=torch.zeros_like(y),
        best=start,
        best_gradient=gradient,
        best_loss=losses,
        # So that an unchanged best loss halves no step at the first look.
        halved=torch.ones_like(wrong),
        best_loss_then=losses,
        found=torch.where(_per_image(wrong), start, x),
        broken=wrong,
        attackable=torch.zeros_like(wrong),
        shift=start - x,
    )


def advance(logits_of: Logits, s: Search, norm: Norm, eps: float, loss: PointLoss, momentum: float) -> Search:
    """The state at the next iterate."""
    direction, shift = _direction(s.gradient, norm), moved_on(s.shift)
    ascended = project(s.x_adv + s.step_size * direction, s.x, eps, norm)
    moved = s.x_adv + (1 - momentum) * (ascended - s.x_adv) + momentum * (s.x_adv - s.previous)
    moved = torch.where(_per_image(is_lost(s.gradient)), s.x + shift, moved)
    x_adv = project(moved, s.x, eps, norm)
    losses, gradient, wrong = evaluate(logits_of, x_adv, s.y, s.target, loss)
    better = (losses > s.best_loss) | s.best_loss.isnan()
    return s._replace(
        x_adv=x_adv,
        previous=s.x_adv,
        gradient=gradient,
        loss=losses,
        num_rises=s.num_rises + (losses > s.loss),
        best=torch.where(_per_image(better), x_adv, s.best),
        best_gradient=torch.where(_per_image(better), gradient, s.best_gradient),
        best_loss=torch.where(better, losses, s.best_loss),
        found=torch.where(_per_image(wrong), x_adv, s.found),
        broken=s.broken | wrong,
        attackable=s.attackable | (has_direction(direction, NO_MOVE) & is_known(s.gradient)),
        shift=shift,
    )


def look_back(s: Search, window: int) -> Search:
    """Halve the step size of points whose ascent stalled in the last `window` iterations, and put them back to their
    best.

    Their previous iterate stays what it was, as in the standard, so that momentum then points from there.
    """
    stalled = (s.num_rises <= RISING * window) | (~s.halved & (s.best_loss_then >= s.best_loss))
    return s._replace(
        x_adv=torch.where(_per_image(stalled), s.best, s.x_adv),
        gradient=torch.where(_per_image(stalled), s.best_gradient, s.gradient),
        step_size=torch.where(_per_image(stalled), s.step_size / 2, s.step_size),
        num_rises=torch.zeros_like(s.num_rises),
        halved=stalled,
        best_loss_then=s.best_loss,
    )


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest ascent. L2 is as in the standard: a gradient whose squares underflow in float32 moves nothing."""
    if norm == "linf":
        return gradient.sign()  # of a NaN it is 0
    gradient = finite_gradient(gradient)
    return gradient / (norms(gradient) + TINY)


def _per_image(flags: Tensor) -> Tensor:
    return flags.view(-1, 1, 1, 1)
