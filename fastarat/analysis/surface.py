"""The loss round an image, along the direction that an attack takes and along a random one.

A smooth slope is what a robust net shows; a net that masks its gradient shows a rugged surface, or one that is higher
along the random direction.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastarat.config.attack import Norm
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.split_batch_norm import forward

NUM_POINTS = 17
REACH = 1.5
DEFINITIONS = {
    "surface": "cross-entropy at x + a eps u + b eps r, cut to [0, 1]; rows: a, columns: b, in radii; u the sign of "
    "the input gradient at x, r a random sign for each pixel (L2: both scaled to length 1)"
}


@dataclass(frozen=True)
class Surface:
    """Loss grids of several images."""

    radii: Tensor
    """[P]: where the grid's points lie on both axes, in radii of the ball"""
    loss: Tensor
    """[N, P, P]: rows along the gradient, columns along the random direction"""


def loss_surface(model: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float, seed: int) -> Surface:
    """The surfaces round images [N, C, H, W] in [0, 1] with labels int64 [N], by the deployed branch.

    `eps` in pixel units. The model is left as it was.
    """
    radii = torch.linspace(-REACH, REACH, NUM_POINTS, dtype=x.dtype, device=x.device)
    with batch_norm_mode(model, "eval"):
        leaf = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(forward(model, leaf, "adv", "eval"), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * 2 - 1
        up, aside = direction(gradient, norm), direction(signs, norm)
        with torch.no_grad():
            grids = [_grid(model, *image, radii * eps) for image in zip(x, y, up, aside, strict=True)]
    return Surface(radii, torch.stack(grids))


def direction(towards: Tensor, norm: Norm) -> Tensor:
    """Steps [N, C, H, W] of length 1 in the norm: the signs for Linf, the vector over its length for L2."""
    if norm == "linf":
        return towards.sign()
    return F.normalize(towards.flatten(1), dim=1).view_as(towards)


def _grid(model: nn.Module, x: Tensor, y: Tensor, up: Tensor, aside: Tensor, steps: Tensor) -> Tensor:
    a, b = (part.reshape(-1, 1, 1, 1) for part in torch.meshgrid(steps, steps, indexing="ij"))
    points = (x + a * up + b * aside).clamp(0, 1)
    losses = F.cross_entropy(forward(model, points, "adv", "eval"), y.expand(len(points)), reduction="none")
    return losses.view(len(steps), len(steps))
