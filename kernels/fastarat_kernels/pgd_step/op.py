"""`fastarat::pgd_step` and `fastarat::start_point`: the PyTorch twin on a CPU, Triton on a GPU.

Neither is differentiable: an attack's iterates are constants to the loss.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.pgd_step import twin
from fastarat_kernels.philox.twin import signed
from fastarat_kernels.torch_op import torch_op


def pgd_step(
    x_adv: Tensor, gradient: Tensor, centre: Tensor, step_size: float | Tensor, eps: float | Tensor, norm: str
) -> Tensor:
    """The next iterate: x_adv + step_size * sign(gradient), or * gradient / ‖gradient‖, put back into the ball.

    `x_adv`, `gradient`, `centre`: images [N, C, H, W] of one float dtype (float64 on a CPU only), contiguous or
    channels-last, `x_adv` and `centre` alike; the gradient is copied where its layout is another. `step_size` and
    `eps`: scalar tensors on the images' device; floats are frozen into a captured graph. `norm`: "linf" or "l2". A NaN
    in the gradient counts as 0; an infinity has its sign, and in L2 the size of its image's largest finite entry (1 if
    that is 0).
    Returns the iterate in [0, 1], dtype and strides of `x_adv`. Raises `UnsupportedInput`.
    """
    step_size, eps = _scalar(step_size, x_adv), _scalar(eps, x_adv)
    for name, other in (("gradient", gradient), ("centre", centre)):
        if other.shape != x_adv.shape or other.dtype != x_adv.dtype:
            raise UnsupportedInput(
                f"{name}: {tuple(other.shape)} {other.dtype}, x_adv: {tuple(x_adv.shape)} {x_adv.dtype}; give one kind"
            )
    _check(x_adv, {"step_size": step_size, "eps": eps}, norm)
    return _pgd_step(x_adv, gradient, centre, step_size, eps, norm)


def start_point(x: Tensor, rows: Tensor, step: Tensor, eps: float | Tensor, seed: int, norm: str) -> Tensor:
    """`x` plus a random point of the ball of radius `eps`: a function of (seed, step, row) in any layout and batch.

    `x`: images [N, C, H, W] as in `pgd_step`. `rows`: their global row numbers, int64 [N]. `step`: scalar int64
    tensor. `eps`: as in `pgd_step`. `seed`: in [0, 2^64). Linf: eps (2u - 1); L2: eps v^(1/d) z / ‖z‖ with u, v
    uniform and z normal, all by Philox over the NCHW index of a pixel.
    Returns dtype and strides of `x`, not cut to [0, 1]. Raises `UnsupportedInput`.
    """
    eps = _scalar(eps, x)
    if rows.shape != x.shape[:1] or rows.dtype != torch.int64:
        raise UnsupportedInput(f"rows is {tuple(rows.shape)} {rows.dtype}: give an int64 number for each image")
    _check(x, {"step": step, "eps": eps}, norm)
    return _start_point(x, rows, step, eps, signed(seed), norm)


def _scalar(value: float | Tensor, x: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def _laid_out(twin_of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A twin whose result has the strides of its first argument, as is promised while a graph is traced."""

    @wraps(twin_of)
    def laid_out(x: Tensor, *rest: Any) -> Tensor:
        result = twin_of(x, *rest)
        return result if result.stride() == x.stride() else torch.empty_like(x).copy_(result)

    return laid_out


def _empty(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


_pgd_step = torch_op(
    _laid_out(twin.pgd_step),
    _empty,
    schema="(Tensor x_adv, Tensor gradient, Tensor centre, Tensor step_size, Tensor eps, str norm) -> Tensor",
)
_start_point = torch_op(
    _laid_out(twin.start_point),
    _empty,
    schema="(Tensor x, Tensor rows, Tensor step, Tensor eps, int seed, str norm) -> Tensor",
)


def _check(x: Tensor, scalars: dict[str, Tensor], norm: str) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise UnsupportedInput(f"x is {tuple(x.shape)} {x.dtype}: give float images [N, C, H, W]")
    for name, scalar in scalars.items():
        if scalar.dim() != 0:
            raise UnsupportedInput(f"{name} has shape {tuple(scalar.shape)}: give a scalar tensor")
    if norm not in ("linf", "l2"):
        raise UnsupportedInput(f"unknown norm {norm!r}; available: linf, l2")
