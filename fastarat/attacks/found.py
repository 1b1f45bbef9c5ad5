"""What an attack has found, and whether it could search at all."""

from typing import NamedTuple

import torch
from torch import Tensor


class Found(NamedTuple):
    """What an attack gives for B images."""

    images: Tensor
    """a misclassified image for each that is broken; of the others any, [B, C, H, W]"""
    broken: Tensor
    """bool [B]"""
    attackable: Tensor
    """whether any point that was tried, of a finite margin, had a direction to follow that was known in full: bool [B].
    An image that was neither broken nor attackable is no evidence of robustness."""


def nothing_found(x: Tensor) -> Found:
    """What is known of images [B, C, H, W] before the first search."""
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return Found(x.clone(), none, none.clone())


def written(found: Found, places: Tensor, part: Found) -> Found:
    """`found` with what is known of the images at `places` (int64) by now."""
    return Found(*(whole.index_copy(0, places, new) for whole, new in zip(found, part, strict=True)))


def has_direction(gradient: Tensor, above: float = 0) -> Tensor:
    """Which of the gradients [B, ...] have an entry larger than `above` to follow: bool [B]. NaN is none."""
    return (gradient.abs() > above).flatten(1).any(1)


def is_known(gradient: Tensor) -> Tensor:
    """Which of the gradients [B, ...] have no NaN: bool [B]. What is finite of others is followed, but a search that
    met no better one has not searched."""
    return ~gradient.isnan().flatten(1).any(1)


def is_lost(gradient: Tensor) -> Tensor:
    """Which of the gradients [B, ...] lead nowhere because they are NaN: bool [B].

    An attack goes on from another point then. A gradient of exactly zero is one that the standard attacks know: they
    stay where they are.
    """
    return ~is_known(gradient) & ~has_direction(gradient)


def moved_on(shift: Tensor) -> Tensor:
    """Another shift of the same length: that of each image [B, C, H, W] with its pixels moved on by one place."""
    return shift.flatten(1).roll(1, 1).view_as(shift)
