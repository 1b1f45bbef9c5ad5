"""Accuracy on clean and on attacked images, with an interval, per class.

Robust means robust against every iterate of every restart: the ball is round the clean image, the start
included, and one success is enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from fastarat_kernels.augment.reference import gather
from fastarat_kernels.pgd_step.reference import project
from torch import Tensor, nn

from fastarat.attacks.perturb import batch_norm_mode
from fastarat.attacks.pgd import pgd_step, reference_of, start_noise, start_point
from fastarat.attacks.settings import AttackConfig
from fastarat.data.dataset import ImageSet
from fastarat.engine.distributed import World, sum_over_processes
from fastarat.errors import UserError
from fastarat.models.settings import Branch
from fastarat.models.split_batch_norm import current_pass, forward


@dataclass(frozen=True)
class Accuracy:
    """How many images of each class were right, of how many."""

    correct: tuple[int, ...]
    total: tuple[int, ...]

    @property
    def percent(self) -> float:
        """Over all images, 0 to 100."""
        return 100 * sum(self.correct) / sum(self.total)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval in percent, over the choice of images (Wilson, 1927)."""
        n, p, z = sum(self.total), sum(self.correct) / sum(self.total), 1.959964
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * max(middle - half, 0), 100 * min(middle + half, 1)

    @property
    def per_class(self) -> list[float | None]:
        """Percent for each class; None where it has no images."""
        pairs = zip(self.correct, self.total, strict=True)
        return [100 * right / total if total else None for right, total in pairs]


def evaluate(
    model: nn.Module,
    images: ImageSet,
    max_value: int,
    num_classes: int,
    attack: AttackConfig,
    *,
    restarts: int = 1,
    batch: int = 500,
    seed: int = 0,
    branch: Branch = "adv",
    world: World | None = None,
    dtype: torch.dtype | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> tuple[Accuracy, Accuracy]:
    """Clean and robust accuracy of any model from images in [0, 1] to logits, with running statistics.

    Each process of `world` takes a share; all get the result. `advance` is told of finished images.
    `dtype`: of the images; default the model's. The model is left in the mode it was in. A model without
    split batch-norms has one branch. Raises `UserError` for bad settings or no images.
    """
    problems = attack.problems() + ([] if len(images.labels) else ["there are no images to evaluate"])
    if problems:
        raise UserError("; ".join(problems))
    dtype = dtype or _dtype_of(model)
    world = world or World(_device_of(model))
    attack = replace(attack, batch_norm="eval")
    counts = torch.zeros(3, num_classes, dtype=torch.int64, device=world.device)
    mine = np.array_split(np.arange(len(images.labels)), world.size)[world.rank]
    pixels = torch.from_numpy(images.images[mine])
    labels = torch.from_numpy(images.labels[mine])
    # The attack needs no parameter's gradient, which fused kernels would compute along.
    weights = {name: p.detach() for name, p in model.named_parameters()} if current_pass(model) else None
    with batch_norm_mode(model, "eval"):
        for first in range(0, len(mine), batch):
            part = torch.arange(first, min(first + batch, len(mine)))
            x = gather(pixels, part, max_value, dtype).to(world.device)
            y, rows = labels[part].to(world.device), part.to(world.device) + int(mine[0])

            def logits_of(v: Tensor) -> Tensor:
                return forward(model, v, branch, "eval", weights)

            with torch.no_grad():
                clean = logits_of(x).argmax(1) == y
            robust = survives(logits_of, x, y, clean, attack, restarts, seed, rows)
            for row, kept in zip(counts, (torch.ones_like(clean), clean, robust), strict=True):
                row.add_(torch.bincount(y[kept], minlength=num_classes))
            advance(len(part) * world.size)
    total, clean_counts, robust_counts = (tuple(row) for row in sum_over_processes(counts, world).tolist())
    return Accuracy(clean_counts, total), Accuracy(robust_counts, total)


def _device_of(model: nn.Module) -> torch.device:
    found = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if found is None else found.device


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


def survives(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    attack: AttackConfig,
    restarts: int,
    seed: int,
    rows: Tensor,
) -> Tensor:
    """Which of the images `correct` (bool [N]) stay right at every iterate of every restart: bool [N].

    A restart attacks only what is still unbroken.
    """
    alive = correct.clone()
    for restart in range(restarts):
        left = alive.nonzero().squeeze(1)
        if not len(left):
            break
        noise = start_noise(attack, x[left], seed, restart, rows[left])
        alive[left] = _one_restart(logits_of, x[left], y[left], noise, attack)
    return alive


def _one_restart(
    logits_of: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, noise: Tensor | None, attack: AttackConfig
) -> Tensor:
    centre, x_adv = start_point(x, noise, attack)
    x_adv = project(x_adv, centre, attack.eps, attack.norm)
    reference = reference_of(attack, logits_of, centre)
    alive = torch.ones_like(y, dtype=torch.bool)
    for _ in range(attack.steps):
        x_adv, logits = pgd_step(attack, logits_of, x_adv, centre, y, reference)
        alive &= logits.argmax(1) == y
    with torch.no_grad():
        return alive & (logits_of(x_adv).argmax(1) == y)
