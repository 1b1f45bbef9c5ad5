"""Projected gradient descent (Madry et al., 2018) on any function from images to logits."""

from collections.abc import Callable

import torch
from fastarat_kernels import philox
from fastarat_kernels.pgd_step.ball import ascend, project, uniform_noise
from torch import Tensor

from fastarat.attacks.objectives import objective
from fastarat.config.attack import AttackConfig

Logits = Callable[[Tensor], Tensor]
GAUSSIAN = 0.001
"""Standard deviation of the gaussian start, in pixel units, as TRADES (Zhang et al., 2019) has it."""


def start_noise(settings: AttackConfig, x: Tensor, seed: int, step: int | Tensor, rows: Tensor) -> Tensor | None:
    """The start's shift of `x` [N, C, H, W], a function of (seed, step, row); None for start `none`."""
    if settings.start == "none":
        return None
    if settings.start == "gaussian":
        noise = GAUSSIAN * philox.normal(seed, philox.Stream.ATTACK_START, step, rows, tuple(x.shape[1:]))
    else:
        noise = uniform_noise(x.shape, settings.start_scale * settings.eps, settings.norm, seed, step, rows)
    return noise.to(x.dtype)


def start_point(x: Tensor, noise: Tensor | None, settings: AttackConfig) -> tuple[Tensor, Tensor]:
    """The ball's centre and the first iterate, x + noise (not cut to [0, 1]: every later iterate is).

    `published-code` moves the centre too: the published AR-AT code adds the noise to the batch in
    place, so that its attack reaches 2 eps and its clean branch trains on x + noise.
    """
    if noise is None:
        return x, x
    return (x + noise if settings.start == "published-code" else x), x + noise


def input_gradient(
    settings: AttackConfig,
    logits_of: Logits,
    x_adv: Tensor,
    y: Tensor,
    reference: Tensor | None,
    zero: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of the objective at `x_adv` (its shape and dtype), and the logits there (detached).

    `zero`: a scalar 0 that requires grad. A compiled step passes one in, since a graph can differentiate by
    what it is given, but not make a leaf of its own.
    """
    zero = x_adv.new_zeros((), requires_grad=True) if zero is None else zero
    with torch.enable_grad():
        leaf = x_adv.detach() + zero
        logits = logits_of(leaf)
        value = objective(settings.objective, logits, y, reference)
        # Only the input's gradient is asked for: autograd computes no parameter's.
        (gradient,) = torch.autograd.grad(value * loss_scale(logits), leaf)
    return gradient, logits.detach()


def loss_scale(logits: Tensor) -> int:
    """A factor on the objective, whose size does not matter: in fp16 the gradient of a confidently classified image
    would underflow."""
    return 1024 if logits.dtype == torch.float16 else 1


def pgd_step(
    settings: AttackConfig,
    logits_of: Logits,
    x_adv: Tensor,
    centre: Tensor,
    y: Tensor,
    reference: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step: the next iterate, and the logits of this one (detached)."""
    gradient, logits = input_gradient(settings, logits_of, x_adv, y, reference)
    moved = ascend(x_adv, gradient, settings.step, settings.norm)
    return project(moved, centre, settings.radius, settings.norm), logits


def reference_of(settings: AttackConfig, logits_of: Logits, x: Tensor) -> Tensor | None:
    """The clean log-probabilities [N, K] that the KL objective holds constant; None for the others."""
    if settings.objective != "kl":
        return None
    with torch.no_grad():
        logits = logits_of(x)
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)


def pgd(settings: AttackConfig, logits_of: Logits, centre: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """`settings.steps` steps of ascent from `x_adv` in the ball round `centre` (both [N, C, H, W]).

    Labels `y` are int64 [N]. Returns the last iterate, inside the ball and [0, 1].
    """
    reference = reference_of(settings, logits_of, centre)
    for _ in range(settings.steps):
        x_adv, _ = pgd_step(settings, logits_of, x_adv, centre, y, reference)
    return x_adv.detach()
