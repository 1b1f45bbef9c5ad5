"""Batches from a resident uint8 set, in PyTorch: gather, crop, flip and scale, on the device."""

import torch
from torch import Tensor

from fastarat_kernels import philox
from fastarat_kernels.augment.gather import images_of, scaled
from fastarat_kernels.philox import Stream


def augment(
    images: Tensor,
    index: Tensor,
    epoch: int,
    max_value: int,
    dtype: torch.dtype,
    crop_padding: int,
    flip: bool,
    seed: int,
    num_channels: int | None = None,
    identity: Tensor | None = None,
) -> Tensor:
    """As `gather`, each image cropped out of its zero-padded self and flipped at random.

    What happens to an image depends on (seed, epoch, its identity) alone: int64 [B], None: its index in the set.
    """
    height, width = images.shape[1:3]
    shift_y, shift_x, mirror = _draws(index if identity is None else identity, crop_padding, flip, seed, epoch)
    columns = torch.arange(width, device=images.device).expand(len(index), -1)
    columns = torch.where(mirror[:, None], width - 1 - columns, columns) + shift_x[:, None]
    rows = torch.arange(height, device=images.device) + shift_y[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return images_of(scaled(pixels, max_value, dtype) * inside[..., None], num_channels)


def _draws(index: Tensor, crop_padding: int, flip: bool, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    words = philox.words(seed, Stream.AUGMENTATION, epoch, index, 3)
    shifts = words[:, :2] % (2 * crop_padding + 1) - crop_padding
    mirror = (words[:, 2] & 1).bool() if flip else torch.zeros_like(words[:, 2], dtype=torch.bool)
    return shifts[:, 0], shifts[:, 1], mirror
