"""The ball round an image, cut to [0, 1]: a step of ascent in it, a random point of it."""

from typing import Literal

import torch
from torch import Tensor

from fastarat_kernels import philox
from fastarat_kernels.philox import Stream

Norm = Literal["linf", "l2"]


def norms(x: Tensor) -> Tensor:
    """The L2 norm of each image: [N, 1, 1, 1]."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def project(x: Tensor, centre: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """The point of the ball round `centre` next to `x` (L2: along the radius), then cut to [0, 1]."""
    if norm == "linf":
        return torch.minimum(torch.maximum(x, centre - eps), centre + eps).clamp(0, 1)
    shift = x - centre
    return (centre + shift * (eps / norms(shift).clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)


def finite_gradient(gradient: Tensor) -> Tensor:
    """The gradient [N, C, H, W] that a step can follow: NaN counts as 0, and an infinite entry as its image's largest
    finite one (1 where that is 0), of its own sign. Finite gradients are as they were."""
    largest = gradient.nan_to_num(0, 0, 0).abs().amax((1, 2, 3), keepdim=True)
    largest = largest.masked_fill(largest == 0, 1)
    return gradient.nan_to_num(0, torch.inf, -torch.inf).clamp(-largest, largest)


def ascend(x: Tensor, gradient: Tensor, step: float | Tensor, norm: Norm) -> Tensor:
    """A step along the steepest ascent of the norm: sign(g), or g / ‖g‖, g being what is finite of the gradient."""
    if norm == "linf":
        return x + step * gradient.sign()  # of a NaN it is 0
    gradient = finite_gradient(gradient)
    # Scaled to 1 first: the squares of a confident image's gradient would underflow in float32.
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    return x + step * gradient / norms(gradient).clamp_min(1e-12)


def uniform_noise(
    shape: torch.Size, eps: float | Tensor, norm: Norm, seed: int, step: int | Tensor, rows: Tensor
) -> Tensor:
    """Shifts uniform in the ball of radius `eps`, float32 `shape` [N, C, H, W].

    Functions of (seed, step, row) alone, `rows` being the global row numbers (int64 [N]). L2: a normal
    direction, and a radius eps * u^(1/d).
    """
    image = tuple(shape[1:])
    if norm == "linf":
        return eps * (2 * philox.uniform(seed, Stream.ATTACK_START, step, rows, image) - 1)
    direction = philox.normal(seed, Stream.ATTACK_START, step, rows, image)
    radius = philox.uniform(seed, Stream.ATTACK_RADIUS, step, rows, (1, 1, 1)) ** (1 / direction[0].numel())
    return eps * radius * direction / norms(direction).clamp_min(1e-12)
