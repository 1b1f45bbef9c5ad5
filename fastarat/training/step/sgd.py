"""SGD with momentum as a function, so that it can stand inside a compiled step; and the learning rate of a step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastarat.config.training import ScheduleConfig


@torch.no_grad()
def sgd_(
    parameters: Sequence[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    keep: Tensor | None = None,
) -> None:
    """m <- momentum m + g + weight_decay p;  p <- p - learning_rate m, in place (torch.optim.SGD's rule).

    Gradients g and momenta m have the shapes and dtypes of their parameters p. `learning_rate` and `keep` are scalar
    tensors on their device; where `keep` is 0, not 1, nothing changes (a step skipped because fp16 gradients
    overflowed), and the host need not know.
    """
    gradients = list(torch._foreach_add(gradients, list(parameters), alpha=weight_decay))
    if keep is None:
        torch._foreach_mul_(momenta, momentum)
    else:
        torch._foreach_mul_(gradients, keep)
        torch._foreach_mul_(momenta, momentum * keep + (1 - keep))
        learning_rate = learning_rate * keep
    torch._foreach_add_(momenta, gradients)
    torch._foreach_sub_(list(parameters), torch._foreach_mul(momenta, learning_rate))


def learning_rate(settings: ScheduleConfig, peak: float, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step `step` (from 0) of a training of `epochs` epochs.

    `steps` changes between epochs (epochs count from 1), the others with every step.
    """
    epoch = step // steps_per_epoch + 1
    progress = step / (steps_per_epoch * epochs)
    if epoch <= settings.warmup_epochs:
        return peak * settings.warmup_factor
    if settings.name == "steps":
        return peak * settings.factor ** sum(epoch >= milestone for milestone in settings.milestones)
    if settings.name == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    if settings.name == "cyclic":
        return peak * min(progress / settings.rise, (1 - progress) / (1 - settings.rise))
    return peak
