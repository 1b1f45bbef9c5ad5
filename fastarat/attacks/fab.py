"""Targeted FAB of the standard AutoAttack (Croce and Hein, 2020, "Minimally distorted adversarial examples with a fast
adaptive boundary attack"): it looks for the nearest misclassified point, not for any in the ball.

With f = z_t - z_y and w its gradient at the iterate x', the boundary to the target t is about the hyperplane
w.q = w.x' - f. Let d' and d be the shortest shifts of x' and of the image x to that plane within [0, 1]. Then

    x'  becomes  (1 - a) (x' + 1.05 d') + a (x + 1.05 d), cut to [0, 1],    a = min(|d'| / (|d'| + |d|), 0.1).

If that is misclassified, as whatever class, it counts as found, and the search goes on from a tenth nearer to x. With
one restart, as in the standard, the first iterate is x: nothing is random.

An iteration runs the model twice, at x' with the gradient and at the next x' to classify it. Only where the search does
not turn back is the latter the next iteration's point, and that was so for 8 to 23 % of the points of an iteration
(small convolutional nets, both norms): to keep the whole batch's graph for them would save nothing.

Of a gradient that is not finite its finite part makes the hyperplane; where there is none, the search goes on from
another point of the ball. A gradient of exactly zero keeps it where it is, as in the standard.
"""

from functools import partial
from typing import NamedTuple

import torch
from fastarat_kernels.pgd_step.ball import finite_gradient
from torch import Tensor

from fastarat.attacks.apgd_search import COMPACT_EVERY, random_shift
from fastarat.attacks.attack import Attack, Conditions, Cost, Found, towards_targets
from fastarat.attacks.objectives import has_direction, is_known, is_lost, moved_on
from fastarat.attacks.pgd import Logits
from fastarat.attacks.projections import lengths, project_onto_plane
from fastarat.config.attack import Norm
from fastarat.config.evaluation import NUM_TARGETS, EvaluationSettings
from fastarat.models.predictions import are_right

OVERSHOOT = 1.05
MOST_OF_IMAGE = 0.1
TURN_BACK = 0.9
SHORTEST = 1e-8


class Search(NamedTuple):
    """The state of a search, all tensors of one row a point; images [B, C, H, W]."""

    x: Tensor
    y: Tensor
    """int64 [B]"""
    target: Tensor
    """int64 [B]"""
    x_adv: Tensor
    closest: Tensor
    """the misclassified point nearest to x so far, or x"""
    distance: Tensor
    """of that point, infinite if there is none: [B, 1, 1, 1]"""
    attackable: Tensor
    """whether any iterate had a direction to follow that was known in full, bool [B]"""
    shift: Tensor
    """from x to where the search goes on if there is none"""


def fab_t(logits_of: Logits, x: Tensor, y: Tensor, rows: Tensor, conditions: Conditions, *, steps: int = 100) -> Found:
    """FAB-T against images `x` [B, C, H, W] in [0, 1] with labels `y` (int64 [B]), which are left as they are.

    One search a target (see `towards_targets`). `logits_of` maps images to logits [B, K]; of its gradients only the
    input's is asked for. `rows` is not looked at: nothing is random.

    Returns a misclassified point within `eps` of every broken point; the others stay `x`. Raises `UserError` if the
    model has no more classes than targets.
    """

    def search(rank: int, left: Tensor, target: Tensor) -> Found:
        closest, distance, attackable = fab(logits_of, x[left], y[left], target, conditions, steps=steps)
        inside = distance <= conditions.settings.eps
        return Found(torch.where(inside.view(-1, 1, 1, 1), closest, x[left]), inside, attackable)

    return towards_targets("fab-t", search, logits_of, x, y, conditions, least=FAB_T.fewest_classes)


def fab(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    target: Tensor,
    conditions: Conditions,
    *,
    steps: int = 100,
    compact_every: int = COMPACT_EVERY,
) -> tuple[Tensor, Tensor, Tensor]:
    """One search towards the classes `target` (int64 [B]); the other arguments are `fab_t`'s.

    A search ends once its distance is at most `eps`: the point is broken. `eps` is also the radius of the ball from
    which a search without a direction goes on. With `eps` 0 every search takes all its steps.

    Returns the nearest misclassified points (`x` where none was found), their distances [B], infinite where none was
    found, and which had a direction to follow: bool [B].
    """
    norm, eps = conditions.settings.norm, conditions.settings.eps
    closest, distance = x.clone(), x.new_full((len(x),), torch.inf)
    attackable = torch.zeros_like(y, dtype=torch.bool)
    places = torch.arange(len(x), device=x.device)
    shift = random_shift(x, y.new_zeros(1), norm, eps, 0, 0).expand_as(x)  # one for all: it depends on no other
    search = Search(x, y, target, x, x, distance.view(-1, 1, 1, 1), attackable, shift)
    for iteration in range(1, steps + 1):
        if not len(places):
            break
        search = conditions.mover(("fab", norm), partial(advance, logits_of, norm=norm), search)
        if iteration % compact_every == 0 or iteration == steps:
            closest = closest.index_copy(0, places, search.closest)
            distance = distance.index_copy(0, places, search.distance.flatten())
            attackable = attackable.index_copy(0, places, search.attackable)
            # The host waits for the device here, and nowhere else in a search.
            kept = (search.distance.flatten() > eps).nonzero().flatten()
            search, places = Search(*(tensor[kept] for tensor in search)), places[kept]
    return closest, distance, attackable


def advance(logits_of: Logits, s: Search, norm: Norm) -> Search:
    """The state after one more iteration."""
    difference, gradient = lead_of_target(logits_of, s)
    known, lost, gradient = is_known(gradient), is_lost(gradient), finite_gradient(gradient)
    aside = moved_on(s.shift)
    offset = (gradient * s.x_adv).flatten(1).sum(1) - difference
    both = torch.cat([s.x_adv, s.x])
    shift, shift_of_x = project_onto_plane(both, gradient.repeat(2, 1, 1, 1), offset.repeat(2), norm).chunk(2)
    length, length_of_x = (lengths(d, norm).clamp_min(SHORTEST) for d in (shift, shift_of_x))
    share = (length / (length + length_of_x)).clamp_max(MOST_OF_IMAGE)
    x_adv = (1 - share) * (s.x_adv + OVERSHOOT * shift) + share * (s.x + OVERSHOOT * shift_of_x)
    lost = lost | ~offset.isfinite()  # infinite logits have no hyperplane
    x_adv = torch.where(lost.view(-1, 1, 1, 1), s.x + aside, x_adv).clamp(0, 1)
    with torch.no_grad():
        wrong = ~are_right(logits_of(x_adv), s.y).view(-1, 1, 1, 1)
    distance = lengths(x_adv - s.x, norm)
    closer = wrong & (distance < s.distance)
    return s._replace(
        x_adv=torch.where(wrong, s.x + TURN_BACK * (x_adv - s.x), x_adv),
        closest=torch.where(closer, x_adv, s.closest),
        distance=torch.where(closer, distance, s.distance),
        attackable=s.attackable | (has_direction(gradient) & known & ~lost),
        shift=aside,
    )


def lead_of_target(logits_of: Logits, s: Search) -> tuple[Tensor, Tensor]:
    """z_t - z_y at the iterates [B], and its gradient [B, C, H, W]; both of the images' dtype."""
    with torch.enable_grad():
        leaf = s.x_adv.detach().requires_grad_()
        logits = logits_of(leaf).to(leaf.dtype)
        of_target, of_label = (logits.gather(1, classes[:, None])[:, 0] for classes in (s.target, s.y))
        lead = of_target - of_label
        (gradient,) = torch.autograd.grad(lead.sum(), leaf)
    # A model that works on channels-last images returns such a gradient; mixed formats would be slow.
    return lead.detach(), gradient.contiguous()


def _cost(settings: EvaluationSettings) -> Cost:
    part = settings.targets / NUM_TARGETS
    return Cost(passes=2729 * part, forwards=1800 * part)


FAB_T = Attack(fab_t, _cost, fewest_classes=2, uses_mover=True)
