"""The ball round an image, cut to [0, 1]: a step of ascent in it, a random point of it, in PyTorch.

All functions take images [N, C, H, W] of any float dtype, pixels in [0, 1], and return the same.
`eps` and `step_size` are floats or scalar tensors.
"""

import torch
from torch import Tensor

from fastarat_kernels.pgd_step.ball import Norm, ascend, project, uniform_noise


def pgd_step(
    x_adv: Tensor, gradient: Tensor, centre: Tensor, step_size: float | Tensor, eps: float | Tensor, norm: Norm
) -> Tensor:
    """`x_adv` moved by `step_size` up the gradient and put back into the ball; half dtypes compute in float32."""
    wide = torch.promote_types(x_adv.dtype, torch.float32)
    centre = centre.to(wide)
    moved = ascend(x_adv.to(wide), gradient.to(wide), step_size, norm)
    return project(moved, centre, eps, norm).to(x_adv.dtype)


def start_point(x: Tensor, rows: Tensor, step: int | Tensor, eps: float | Tensor, seed: int, norm: Norm) -> Tensor:
    """`x` plus a point of the ball of radius `eps` (not cut to [0, 1]: every later iterate is)."""
    return x + uniform_noise(x.shape, eps, norm, seed, step, rows).to(x.dtype)
