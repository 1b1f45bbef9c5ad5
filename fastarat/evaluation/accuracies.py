"""Accuracy on clean and on attacked images, with an interval, per class.

The driver of `autoattack` runs the same search by the name pgd, and finds the same. It is no substitute here: an
evaluation within a training is shared among processes, in training's number format and with its weights, may move the
ball as the published code does, and lets the host wait once a restart, not once a batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from fastarat.common.distributed import World, largest, sum_over_processes
from fastarat.common.errors import Interrupted, UserError
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.data.images.dataset import Images
from fastarat.evaluation.verdicts import DeviceImages, on_clean, under_attack
from fastarat.models.batch_norm import batch_norm_mode
from fastarat.models.split_batch_norm import forward, forward_context

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Accuracy:
    """How many images of each class were right, of how many."""

    correct: tuple[int, ...]
    total: tuple[int, ...]
    undefined: int = 0
    """of the wrong, how many are so because their logits are NaN, or infinite for several classes"""
    not_attackable: int = 0
    """of the right under attack, how many are so without evidence: no gradient to follow was free of NaN"""
    small_logits: int = 0
    """of the right as they are, how many have logits so small that an attack by cross-entropy leaves too much"""

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


@dataclass(frozen=True)
class AccuracySettings:
    """How accuracies are measured."""

    num_attacked: int | None = None
    """the first images, the only ones attacked, over which robust accuracy is; None: all"""
    restarts: int = 1
    batch: int = 500
    """images at a time"""
    seed: int = 0
    """of the attack's starts"""
    branch: Branch = "adv"
    """of the batch-norms; a model without split ones has one"""
    dtype: torch.dtype | None = None
    """of the images; None: the model's"""
    weights: Mapping[str, Tensor] | None = None
    """what stands in for the parameters of these names"""


EVERY_IMAGE = AccuracySettings()


@torch.inference_mode(False)
def accuracies(
    model: nn.Module,
    images: Images,
    max_value: int,
    num_classes: int,
    attack: AttackConfig,
    settings: AccuracySettings = EVERY_IMAGE,
    *,
    world: World | None = None,
    advance: Callable[[float], None] = lambda amount: None,
) -> tuple[Accuracy, Accuracy]:
    """Clean and robust accuracy of any model from images in [0, 1] to logits, with running statistics.

    Each process of `world` takes a share, which waits on its device as bytes; all get the result. `advance` is told
    what is done, as a number of images; where it raises `Interrupted` in one process, this does in all. The model is
    left in the mode it was in. Raises `UserError` for bad settings or no images.
    """
    problems = attack.problems() + ([] if len(images.labels) else ["there are no images to evaluate: give one or more"])
    if settings.num_attacked is not None and settings.num_attacked < 1:
        problems.append(f"num_attacked is {settings.num_attacked}: give 1 or more")
    if problems:
        raise UserError("; ".join(problems))
    attack, batch, weights = replace(attack, batch_norm="eval"), settings.batch, settings.weights
    world = world or World(device_of(model))
    num_attacked = min(settings.num_attacked or len(images.labels), len(images.labels))
    dtype = settings.dtype or next((parameter.dtype for parameter in model.parameters()), torch.float32)
    share, num_first = _share(images, num_attacked, max_value, dtype, world)
    told_clean, told_restart = _progress(advance, len(images.labels), num_attacked, attack, settings.restarts, world)
    # The attack needs no parameter's gradient, which fused kernels would compute along.
    if weights is None and forward_context(model):
        weights = {name: p.detach() for name, p in model.named_parameters()}

    def logits_of(x: Tensor) -> Tensor:
        return forward(model, x, settings.branch, "eval", weights)

    first = share.first(num_first)
    with batch_norm_mode(model, "eval"), _stopping_together(world):
        clean = on_clean(logits_of, share, batch, told_clean)
        right = clean.right[:num_first]
        robust = under_attack(
            logits_of, first, right, attack, settings.restarts, settings.seed, batch, advance=told_restart
        )
    counts = [
        of.per_class(flags, num_classes)
        for of, (right, *others) in ((share, clean), (first, robust))
        for flags in (right, torch.ones_like(right), *others)
    ]
    rows = [tuple(row) for row in sum_over_processes(torch.stack(counts), world).tolist()]
    on, under = (Accuracy(right, total, *map(sum, doubts)) for right, total, *doubts in (rows[:5], rows[5:]))
    return on, under


@contextmanager
def _stopping_together(world: World) -> Iterator[None]:
    """Raise `Interrupted` in all processes if it ends the block in one: the others would wait for its sums."""
    own = None
    try:
        yield
    except Interrupted as stopped:
        own = stopped
    (number,) = largest((own.number if own else 0,), world)
    if number:
        raise own or Interrupted("stopped with another process", number)


def _share(
    images: Images, num_attacked: int, max_value: int, dtype: torch.dtype, world: World
) -> tuple[DeviceImages, int]:
    """This process's images, of both parts equally many; and how many of them, which come first, are attacked."""
    parts = np.split(np.arange(len(images.labels)), [num_attacked])
    attacked, rest = (np.array_split(part, world.size)[world.rank] for part in parts)
    mine = np.concatenate([attacked, rest])
    pixels, labels, rows = (
        torch.from_numpy(part).to(world.device) for part in (images.images[mine], images.labels[mine], mine)
    )
    return DeviceImages(pixels, labels, rows, max_value, dtype), len(attacked)


def _progress(
    advance: Callable[[float], None],
    num_images: int,
    num_attacked: int,
    attack: AttackConfig,
    restarts: int,
    world: World,
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """What is to be told of images whose clean prediction is known, and of those that are through a restart.

    Work is counted in forwards, a gradient being about two, and told as a number of images.
    """
    restart = 2 * attack.steps
    unit = world.size * num_images / (num_images + num_attacked * restarts * restart)
    return lambda amount: advance(unit * amount), lambda amount: advance(unit * restart * amount)


def device_of(model: nn.Module, otherwise: torch.device = CPU) -> torch.device:
    """Where the model's tensors are; `otherwise` where it has none."""
    found = next(chain(model.parameters(), model.buffers()), None)
    return otherwise if found is None else found.device
