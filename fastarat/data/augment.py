"""Batches from a resident uint8 set: gather, crop, flip and scale, on the device."""

import torch
from fastarat_kernels import philox
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.data.settings import AugmentConfig


def gather(images: Tensor, index: Tensor, max_value: int, dtype: torch.dtype) -> Tensor:
    """Images `index` (int64 [B]) of a uint8 set [N, H, W, C], as `dtype` [B, C, H, W] in [0, 1]."""
    return (images[index].to(dtype) / max_value).permute(0, 3, 1, 2)


def augmented(
    images: Tensor,
    index: Tensor,
    max_value: int,
    dtype: torch.dtype,
    settings: AugmentConfig,
    seed: int,
    epoch: int,
) -> Tensor:
    """As `gather`, each image cropped out of its zero-padded self and flipped at random.

    What happens to an image depends on (seed, epoch, its index in the set) alone.
    """
    height, width = images.shape[1:3]
    shift_y, shift_x, flip = _draws(index, settings, seed, epoch)
    columns = torch.arange(width, device=images.device).expand(len(index), -1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + shift_x[:, None]
    rows = torch.arange(height, device=images.device) + shift_y[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return (pixels.to(dtype) / max_value * inside[..., None]).permute(0, 3, 1, 2)


def _draws(index: Tensor, settings: AugmentConfig, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    words = philox.words(seed, Stream.AUGMENTATION, epoch, index, 3)
    padding = settings.crop_padding
    shifts = words[:, :2] % (2 * padding + 1) - padding
    flip = (words[:, 2] & 1).bool() if settings.flip else torch.zeros_like(words[:, 2], dtype=torch.bool)
    return shifts[:, 0], shifts[:, 1], flip
