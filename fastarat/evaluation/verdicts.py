"""Which images a model gets right as they are, and which stay right under PGD.

Robust means robust against every iterate of every restart: the ball is round the clean image, the start included, and
one success is enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from fastarat_kernels.augment.gather import gather
from torch import Tensor

from fastarat.attacks.every_iterate import one_restart
from fastarat.config.attack import AttackConfig
from fastarat.models.predictions import SMALL_SPAN, are_right, are_undefined, spans


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


class Verdict(NamedTuple):
    """What is known of N images, on their device: bool [N] each."""

    right: Tensor
    undefined: Tensor
    """wrong because their logits predict nothing"""
    not_attackable: Tensor
    """right, but no restart had a direction to follow at any point"""
    small_logits: Tensor
    """right as they are, by logits of more than two classes that span less than `SMALL_SPAN`"""


def on_clean(
    logits_of: Callable[[Tensor], Tensor],
    images: DeviceImages,
    batch: int,
    advance: Callable[[int], None] = lambda amount: None,
) -> Verdict:
    """Which images are predicted right as they are, `batch` of them at a time.

    `logits_of` maps images [B, C, H, W] of `images.dtype` to logits [B, K]. `advance` is told of the images done.
    """
    right, undefined, none, small = torch.zeros((4, len(images)), dtype=torch.bool, device=images.labels.device)
    for part in _batches(torch.arange(len(images), device=right.device), batch):
        with torch.no_grad():
            logits = logits_of(images.batch(part))
        right[part], undefined[part] = are_right(logits, images.labels[part]), are_undefined(logits)
        small[part] = right[part] & (spans(logits) < SMALL_SPAN) & (logits.shape[1] > 2)
        advance(len(part))
    return Verdict(right, undefined, none, small)


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

    `logits_of`, `batch`: as of `on_clean`. A restart attacks only what is still unbroken, which is all that the host
    waits for. `advance` is told of the images that are through a restart.
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
    return Verdict(alive, undefined, alive & ~attackable & (restarts > 0), torch.zeros_like(alive))


def _batches(index: Tensor, batch: int) -> Sequence[Tensor]:
    return index.split(batch) if len(index) else ()


def _filled(index: Tensor, size: int) -> Tensor:
    """`index` filled up to `size` by its first: where cuDNN times its algorithms for every new shape, there are few."""
    if not torch.backends.cudnn.benchmark:
        return index
    return torch.cat([index, index[:1].expand(size - len(index))])
