"""Images of a resident uint8 set as a batch."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def gather(
    images: Tensor, index: Tensor, max_value: int, dtype: torch.dtype, num_channels: int | None = None
) -> Tensor:
    """Images `index` (int64 [B]) of a uint8 set [N, H, W, C], as `dtype` [B, num_channels, H, W] in [0, 1].

    Channels from C on are zero; None: there are none. Channels-last.
    """
    return images_of(scaled(images[index], max_value, dtype), num_channels)


def scaled(pixels: Tensor, max_value: int, dtype: torch.dtype) -> Tensor:
    """uint8 `pixels` of any shape as `dtype` in [0, 1]: divided by `max_value`, rounded once."""
    # By a tensor: on a GPU PyTorch multiplies by the reciprocal of a Python number, which is another rounding.
    return pixels.to(dtype) / torch.full((), max_value, dtype=dtype, device=pixels.device)


def images_of(pixels: Tensor, num_channels: int | None) -> Tensor:
    """Channels-last images of `pixels` [B, H, W, C] with zeros for the channels beyond C."""
    num_extra = 0 if num_channels is None else num_channels - pixels.shape[3]
    return (pad(pixels, (0, num_extra)) if num_extra else pixels).permute(0, 3, 1, 2)
