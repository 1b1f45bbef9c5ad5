"""`fastarat::augment`: the PyTorch twin on a CPU, Triton on a GPU. Not differentiable: it starts from bytes."""

from typing import Any

import torch
from torch import Tensor

from fastarat_kernels.augment import twin
from fastarat_kernels.launch import UnsupportedInput
from fastarat_kernels.philox.twin import signed
from fastarat_kernels.torch_op import torch_op


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
    """Images `index` of a set, each cropped out of its zero-padded self and flipped at random, in [0, 1].

    `images`: uint8 [N, H, W, C], contiguous, values to `max_value`. `index`: int64 [B] in [0, N), not checked on a
    GPU. `dtype`: the result's (float64 on a CPU only). `crop_padding`: pixels on each side, 0 for no crop; `flip`:
    mirror one image in two. What happens to an image depends on (seed, epoch, its identity) alone: `identity` is
    int64 [B], for a batch whose images come from elsewhere; None: `index`. `seed` lies in [0, 2^64), `epoch` in
    [0, 2^32). Without crop and flip this is a plain gather.
    Returns [B, num_channels, H, W], channels-last; channels from C on are zero (tensor cores like 4 or 8 better
    than 3), None: C. Raises `UnsupportedInput`.
    """
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise UnsupportedInput(f"images is {tuple(images.shape)} {images.dtype}: give a uint8 set [N, H, W, C]")
    if index.dim() != 1 or index.dtype != torch.int64:
        raise UnsupportedInput(f"index is {tuple(index.shape)} {index.dtype}: give int64 [B]")
    if identity is not None and (identity.shape != index.shape or identity.dtype != torch.int64):
        raise UnsupportedInput(f"identity is {tuple(identity.shape)} {identity.dtype}: give int64 {list(index.shape)}")
    if not dtype.is_floating_point:
        raise UnsupportedInput(f"dtype is {dtype}: give a float dtype")
    if crop_padding < 0:
        raise UnsupportedInput(f"crop_padding is {crop_padding}: give 0 or more pixels")
    if num_channels is not None and num_channels < images.shape[3]:
        raise UnsupportedInput(f"num_channels is {num_channels}, images have {images.shape[3]}: give at least as many")
    return _augment(images, index, epoch, max_value, dtype, crop_padding, flip, signed(seed), num_channels, identity)


def _empty(images: Tensor, index: Tensor, epoch: int, max_value: int, dtype: torch.dtype, *rest: Any) -> Tensor:
    num_channels = rest[3] if len(rest) > 3 else None
    shape = (len(index), num_channels or images.shape[3], *images.shape[1:3])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


_augment = torch_op(twin.augment, _empty)
