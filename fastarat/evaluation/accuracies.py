"""Accuracy on clean and on attacked images, with an interval, per class.

Robust means robust against every iterate of every restart: the ball is round the clean image, the start
included, and one success is enough.

The driver of `autoattack` runs the same search by the name pgd, and finds the same. It is no substitute here: an
evaluation within a training is shared among processes, in training's number format and with its weights, may move the
ball as the published code does, and lets the host wait once a restart, not once a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from fastarat_kernels.augment.gather import gather
from torch import Tensor, nn

from fastarat.attacks.every_iterate import one_restart
from fastarat.common.distributed import World, sum_over_processes
from fastarat.common.errors import UserError
from fastarat.config.attack import AttackConfig
from fastarat.config.model import Branch
from fastarat.data.images.dataset import Images
from fastarat.models.modes import batch_norm_mode
from fastarat.models.predictions import are_right, are_undefined
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


@dataclass(frozen=True)
class DeviceImages:
    """Images on a device: bytes there, until a batch of them is asked for."""

    pixels: Tensor
    """uint8 [N, H, W, C]"""
    labels: Tensor
    """int64 [N]"""
    rows: Tensor
    """int64 [N]: the images' places in the whole set, on which their random numbers depend"""
    max_value: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> Tensor:
        """Images `index` (int64 [B]) as `dtype` [B, C, H, W] in [0, 1], channels-last."""
        return gather(self.pixels, index, self.max_value, self.dtype)

    def first(self, num_images: int) -> "DeviceImages":
        """The first `num_images`."""
        kept = slice(num_images)
        return replace(self, pixels=self.pixels[kept], labels=self.labels[kept], rows=self.rows[kept])

    def per_class(self, chosen: Tensor, num_classes: int) -> Tensor:
        """How many of the images `chosen` (bool [N]) each class has: int64 [num_classes]."""
        return self.labels.new_zeros(num_classes).scatter_add_(0, self.labels, chosen.long())


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
    what is done, as a number of images. The model is left in the mode it was in. Raises `UserError` for bad settings or
    no images.
    """
    _check(images, attack, settings.num_attacked)
    attack, batch, weights = replace(attack, batch_norm="eval"), settings.batch, settings.weights
    world = world or World(device_of(model))
    num_attacked = min(settings.num_attacked or len(images.labels), len(images.labels))
    share, num_first = _share(images, num_attacked, max_value, settings.dtype or _dtype_of(model), world)
    told_clean, told_restart = _progress(advance, len(images.labels), num_attacked, attack, settings.restarts, world)
    # The attack needs no parameter's gradient, which fused kernels would compute along.
    if weights is None and forward_context(model):
        weights = {name: p.detach() for name, p in model.named_parameters()}

    def logits_of(x: Tensor) -> Tensor:
        return forward(model, x, settings.branch, "eval", weights)

    with batch_norm_mode(model, "eval"):
        clean = on_clean(logits_of, share, batch, told_clean)
        first = share.first(num_first)
        right = clean.right[:num_first]
        robust = under_attack(
            logits_of, first, right, attack, settings.restarts, settings.seed, batch, advance=told_restart
        )
    counted = [(of, flags) for of, verdict in ((share, clean), (first, robust)) for flags in _counted(verdict)]
    counts = torch.stack([of.per_class(chosen, num_classes) for of, chosen in counted])
    rows = [tuple(row) for row in sum_over_processes(counts, world).tolist()]
    on, under = (Accuracy(right, total, sum(nan), sum(blind)) for right, total, nan, blind in (rows[:4], rows[4:]))
    return on, under


def _counted(verdict: "Verdict") -> tuple[Tensor, ...]:
    """Flags, bool [N] each, of which an `Accuracy` has the sums."""
    return verdict.right, torch.ones_like(verdict.right), verdict.undefined, verdict.not_attackable


def _check(images: Images, attack: AttackConfig, num_attacked: int | None) -> None:
    problems = attack.problems() + ([] if len(images.labels) else ["there are no images to evaluate"])
    if num_attacked is not None and num_attacked < 1:
        problems.append(f"num_attacked is {num_attacked}: give 1 or more")
    if problems:
        raise UserError("; ".join(problems))


def _share(
    images: Images, num_attacked: int, max_value: int, dtype: torch.dtype, world: World
) -> tuple[DeviceImages, int]:
    """This process's images, of both parts equally many; and how many of them, which come first, are attacked."""
    parts = np.split(np.arange(len(images.labels)), [num_attacked])
    attacked, rest = (np.array_split(part, world.size)[world.rank] for part in parts)
    mine = np.concatenate([attacked, rest])

    def there(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(world.device)

    share = DeviceImages(there(images.images[mine]), there(images.labels[mine]), there(mine), max_value, dtype)
    return share, len(attacked)


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


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


class Verdict(NamedTuple):
    """Of N images, on their device: bool [N] each."""

    right: Tensor
    undefined: Tensor
    """wrong because their logits predict nothing"""
    not_attackable: Tensor
    """right, but no restart had a direction to follow at any point"""


def on_clean(
    logits_of: Callable[[Tensor], Tensor],
    images: DeviceImages,
    batch: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> Verdict:
    """Which images are predicted right as they are. `advance` is told of the images done."""
    right, undefined, none = torch.zeros((3, len(images)), dtype=torch.bool, device=images.labels.device)
    for part in _batches(torch.arange(len(images), device=right.device), batch):
        with torch.no_grad():
            logits = logits_of(images.batch(part))
        right[part], undefined[part] = are_right(logits, images.labels[part]), are_undefined(logits)
        advance(len(part))
    return Verdict(right, undefined, none)


def under_attack(
    logits_of: Callable[[Tensor], Tensor],
    images: DeviceImages,
    correct: Tensor,
    attack: AttackConfig,
    restarts: int,
    seed: int,
    batch: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> Verdict:
    """Which of the images `correct` (bool [N]) stay right at every iterate of every restart.

    A restart attacks only what is still unbroken, which is all that the host waits for. `advance` is told of the
    images that are through a restart.
    """
    alive, undefined, attackable = correct.clone(), torch.zeros_like(correct), torch.zeros_like(correct)
    for restart in range(restarts):
        left = alive.nonzero().squeeze(1)
        advance(len(alive) - len(left))
        for part in _batches(left, batch):
            index = _filled(part, min(batch, len(alive)))
            x, y, rows = images.batch(index), images.labels[index], images.rows[index]
            (_, broken, searched), nothing, _ = one_restart(logits_of, x, y, rows, attack, seed, restart)
            n = len(part)
            alive[part], undefined[part], attackable[part] = ~broken[:n], nothing[:n], attackable[part] | searched[:n]
            advance(n)
    return Verdict(alive, undefined, alive & ~attackable & (restarts > 0))


def _batches(index: Tensor, batch: int) -> Sequence[Tensor]:
    return index.split(batch) if len(index) else ()


def _filled(index: Tensor, size: int) -> Tensor:
    """`index` filled up to `size` by its first: where cuDNN times its algorithms for every new shape, there are few."""
    if not torch.backends.cudnn.benchmark:
        return index
    return torch.cat([index, index[:1].expand(size - len(index))])
