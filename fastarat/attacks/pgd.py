"""Projected gradient descent (Madry et al., 2018) on any function from images to logits.

The attack of training, of evaluations and of analyses is this one; they give it their own kernels and sizes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from fastarat_kernels import philox
from fastarat_kernels.implementations import PYTORCH, Kernels
from fastarat_kernels.pgd_step.ball import project
from torch import Tensor, nn

from fastarat.attacks.objectives import objective
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.predictions import widened
from fastarat.models.split_batch_norm import forward

Logits = Callable[[Tensor], Tensor]
"""images [N, C, H, W] in [0, 1] to logits [N, K]"""

GAUSSIAN = 0.001
"""Standard deviation of the gaussian start, in pixel units, as TRADES (Zhang et al., 2019) has it."""
FP16_FACTOR = 1024
"""on the objective, whose size does not matter: without it the gradient of a confidently classified image underflows"""


class GradientContext(NamedTuple):
    """How the gradients and the steps of an attack are computed."""

    kernels: Kernels = PYTORCH
    zero: Tensor | None = None
    """a scalar 0 that requires grad. A compiled step passes one in, since a graph can differentiate by what it is
    given, but not make a leaf of its own"""
    factor: Tensor | None = None
    """on the objective, a float32 scalar on the device: halved in place after an overflow, whose entries keep their
    signs; None: as `loss_scale` says"""


PLAIN = GradientContext()


class Ball(NamedTuple):
    """Where iterates may be, and how far a step goes. Sizes are in pixel units: numbers, or scalars on the device."""

    centre: Tensor
    """images [N, C, H, W]"""
    eps: float | Tensor
    """the radius"""
    step_size: float | Tensor


def start(
    settings: AttackConfig,
    x: Tensor,
    rows: Tensor,
    step: int | Tensor,
    *,
    seed: int,
    eps: float | Tensor | None = None,
    kernels: Kernels = PYTORCH,
) -> tuple[Tensor, Tensor]:
    """The first iterate and the centre of its ball, both like `x` [N, C, H, W]: functions of (seed, step, row).

    `rows`: the images' global numbers, int64 [N]. `eps`: the ball's radius, default the settings'. The iterate is not
    cut to [0, 1]: every later one is. `published-code` moves the centre too: the published AR-AT code adds the noise to
    the batch in place, so that its attack reaches 2 eps and its clean branch trains on x + noise.
    """
    if settings.start == "none":
        return x, x
    if settings.start == "gaussian":
        noise = GAUSSIAN * philox.normal(seed, philox.Stream.ATTACK_START, step, rows, tuple(x.shape[1:]))
        first = x + noise.to(x.dtype)
    else:
        eps = settings.eps if eps is None else eps
        radius = eps if settings.start_scale == 1 else eps * settings.start_scale
        first = kernels.start_point(x, rows, step, radius, seed, settings.norm)
    return first, first if settings.start == "published-code" else x


def ascend(
    settings: AttackConfig,
    logits_of: Logits,
    x_adv: Tensor,
    y: Tensor,
    ball: Ball,
    clean_log_probabilities: Tensor | None = None,
    context: GradientContext = PLAIN,
) -> tuple[Tensor, Tensor]:
    """One step: the next iterate, and the logits of this one (detached). Arguments as of `input_gradient`."""
    gradient, logits = input_gradient(settings, logits_of, x_adv, y, clean_log_probabilities, context)
    return context.kernels.pgd_step(x_adv, gradient, ball.centre, ball.step_size, ball.eps, settings.norm), logits


def input_gradient(
    settings: AttackConfig,
    logits_of: Logits,
    x_adv: Tensor,
    y: Tensor,
    clean_log_probabilities: Tensor | None = None,
    context: GradientContext = PLAIN,
) -> tuple[Tensor, Tensor]:
    """The gradient of the objective at `x_adv` (its shape and dtype), and the logits there (detached).

    `y`: int64 [N]; `clean_log_probabilities`: see there.
    """
    zero = x_adv.new_zeros((), requires_grad=True) if context.zero is None else context.zero
    with torch.enable_grad():
        leaf = x_adv.detach() + zero
        logits = logits_of(leaf)
        value = objective(settings.objective, logits, y, clean_log_probabilities)
        # Only the input's gradient is asked for: autograd computes no parameter's.
        factor = loss_scale(logits) if context.factor is None else context.factor
        (gradient,) = torch.autograd.grad(value * factor, leaf)
    if context.factor is not None:
        gradient = _cut_to_fp16(gradient, context.factor)
    return gradient, logits.detach()


def _cut_to_fp16(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient` with the largest number of fp16 for what is larger, 0 for NaN; `factor`, by which it was multiplied,
    is halved if anything is not finite, down to 1."""
    factor.mul_(torch.where(gradient.isfinite().all(), 1.0, 0.5)).clamp_(min=1)
    largest = torch.finfo(torch.float16).max
    return gradient.nan_to_num(nan=0.0, posinf=largest, neginf=-largest)


def loss_scale(logits: Tensor) -> int:
    """The factor on the objective for logits of this format."""
    return FP16_FACTOR if logits.dtype == torch.float16 else 1


def clean_log_probabilities(settings: AttackConfig, logits_of: Logits, x: Tensor) -> Tensor | None:
    """What the KL objective holds constant: [N, K], float32 or wider, of clean images `x`; None for the others."""
    if settings.objective != "kl":
        return None
    with torch.no_grad():
        logits = logits_of(x)
    return widened(logits).log_softmax(1)


def pgd(settings: AttackConfig, logits_of: Logits, centre: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """`settings.steps` steps of ascent from `x_adv` in the ball round `centre` (both [N, C, H, W]).

    Labels `y` are int64 [N]. Returns the last iterate, inside the ball and [0, 1].
    """
    ball = Ball(centre, settings.radius, settings.step_size)
    constant = clean_log_probabilities(settings, logits_of, centre)
    for _ in range(settings.steps):
        x_adv, _ = ascend(settings, logits_of, x_adv, y, ball, constant)
    return x_adv.detach()


@torch.inference_mode(False)
def perturb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    settings: AttackConfig,
    *,
    seed: int = 0,
    branch: Branch = "adv",
) -> Tensor:
    """Adversarial images for any model from images [N, C, H, W] in [0, 1] to logits [N, K], which is left as it was:
    mode, gradients and, where asked, statistics.

    The same (seed, row) gives the same start on every device. `y`: int64 [N]. Raises `UserError` for
    bad settings or for pixels outside [0, 1].
    """
    if problems := settings.problems():
        raise UserError("; ".join(problems))
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise UserError("images must lie in [0, 1]: put the normalisation into the model")
    # What was made under inference_mode takes part in no gradient.
    x, y = (given.clone() if given.is_inference() else given for given in (x, y))
    rows = torch.arange(len(x), device=x.device)
    first, centre = start(settings, x, rows, 0, seed=seed)
    first = project(first, centre, settings.radius, settings.norm)
    with batch_norm_mode(model, settings.batch_norm):
        return pgd(settings, lambda v: forward(model, v, branch, settings.batch_norm), centre, first, y)
