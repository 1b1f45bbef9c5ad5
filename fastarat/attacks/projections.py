"""The nearest point of a hyperplane inside [0, 1]: what FAB (Croce and Hein, 2020) is made of.

Wanted is the shortest shift (Linf or L2) of a point p to {q : w.q = b} in the box. Let every pixel move towards the
plane, with speed 1 (Linf) or |w_i| (L2), until it stands at its wall. The height |w.p - b| then falls at the rate
sum |w_i| speed_i over the pixels that still move, and the shift at the moment it is 0 is the shortest one. If all
pixels stand before that, the plane does not meet the box, and they stand in the corner nearest to it.

That moment is found by Newton's method on the height, a convex function of time made of straight pieces. It nears
the moment from before, and is exact once no further pixel has come to a stand: after 2 to 6 rounds where the shift is
of an attack's size, each far cheaper than sorting the pixels by the time of their stand.
"""

import torch
from torch import Tensor

from fastarat.config.attack import Norm

# The worst case, a shift that ends in all but a corner, leaves under half of the height with each round.
ROUNDS = 16
# Pixels of a weight this small beside the largest cannot move the height; their L2 time would overflow.
NEGLIGIBLE = 1e-16


def lengths(shift: Tensor, norm: Norm) -> Tensor:
    """The norm of each image's shift [N, C, H, W]: [N, 1, 1, 1]."""
    flat = shift.flatten(1)
    length = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    return length.view(-1, *[1] * (shift.dim() - 1))


def project_onto_plane(points: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The shortest shift of each point in [0, 1] to its plane w.q = b inside [0, 1], else to the nearest corner.

    `points` and `w`: [N, ...] of one float dtype, `b`: [N]. Returns the shifts [N, ...]; a pixel of weight 0, and so
    every pixel of a plane without a direction, stays.
    """
    p, w = points.flatten(1), w.flatten(1)
    largest = w.abs().amax(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    height = (w / largest * p).sum(1, keepdim=True) - b.unsqueeze(1) / largest
    way = torch.where(height >= 0, -w, w) / largest
    weight, wall = way.abs(), (way > 0).to(w.dtype)
    movable = weight > (NEGLIGIBLE if norm == "l2" else 0)
    room = (wall - p).abs() * movable.to(w.dtype)
    if norm == "linf":
        move = torch.minimum(room, _arrival(weight, weight * room, room, height.abs()))
    else:
        stand = room / weight.clamp_min(NEGLIGIBLE)
        time = _arrival(weight * weight, weight * room, stand, height.abs())
        # Not time * weight: the time may have no end and the pixel no weight.
        move = torch.minimum(room, torch.minimum(stand, time) * weight)
    return torch.copysign(move, way).view_as(points)


def _arrival(rate: Tensor, fall: Tensor, stand: Tensor, height: Tensor) -> Tensor:
    """When `height` [N, 1] is gone: [N, 1], infinite if never.

    Each pixel [N, D] lowers it at `rate` until the time `stand`, and by `fall` in all.
    """
    time = torch.zeros_like(height)
    for _ in range(ROUNDS):
        # Masks as factors: on a CPU a tenth of the time of torch.where.
        standing = (stand <= time).to(rate.dtype)
        left = (height - (fall * standing).sum(1, keepdim=True)).clamp_min(0)
        speed = (rate * (1 - standing)).sum(1, keepdim=True)
        # Near the corner rounding may lead past all pixels' stands: not back from there.
        later = torch.maximum(time, left / speed.clamp_min(torch.finfo(rate.dtype).tiny))
        if _settled(later, time):
            break
        time = later
    return time.masked_fill(height >= fall.sum(1, keepdim=True), torch.inf)


def _settled(later: Tensor, time: Tensor) -> bool:
    """Whether further rounds would change nothing. A GPU is not asked: the wait would cost more than the rounds."""
    return time.device.type == "cpu" and torch.equal(later, time)
