"""Batches from a resident uint8 set, in PyTorch: gather, crop, flip and scale, on the device."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastarat_kernels import philox
from fastarat_kernels.philox import Stream


def gather(
    images: Tensor, index: Tensor, max_value: int, dtype: torch.dtype, num_channels: int | None = None
) -> Tensor:
    """Images `index` (int64 [B]) of a uint8 set [N, H, W, C], as `dtype` [B, num_channels, H, W] in [0, 1].

    Channels from C on are zero; None: there are none. Channels-last.
    """
    return _images(_scaled(images[index], max_value, dtype), num_channels)


def augment(
    images: Tensor,
    index: Tensor,
    max_value: int,
    dtype: torch.dtype,
    crop_padding: int,
    flip: bool,
    seed: int,
    epoch: int,
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
    return _images(_scaled(pixels, max_value, dtype) * inside[..., None], num_channels)


def _draws(index: Tensor, crop_padding: int, flip: bool, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    words = philox.words(seed, Stream.AUGMENTATION, epoch, index, 3)
    shifts = words[:, :2] % (2 * crop_padding + 1) - crop_padding
    mirror = (words[:, 2] & 1).bool() if flip else torch.zeros_like(words[:, 2], dtype=torch.bool)
    return shifts[:, 0], shifts[:, 1], mirror


def _scaled(pixels: Tensor, max_value: int, dtype: torch.dtype) -> Tensor:
    # By a tensor: on a GPU PyTorch multiplies by the reciprocal of a Python number, which is another rounding.
    return pixels.to(dtype) / torch.full((), max_value, dtype=dtype, device=pixels.device)


def _images(pixels: Tensor, num_channels: int | None) -> Tensor:
    """Channels-last images of `pixels` [B, H, W, C] with zeros for the channels beyond C."""
    num_extra = 0 if num_channels is None else num_channels - pixels.shape[3]
    return (pad(pixels, (0, num_extra)) if num_extra else pixels).permute(0, 3, 1, 2)
