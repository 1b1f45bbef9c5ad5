"""The augmentation's cases of the kernel benchmark."""

from collections.abc import Iterator
from functools import partial

import torch
from fastarat_kernels.augment import augment, twin
from torch import Tensor

from bench.kernels.cases import SEED, Draw, Inputs, KernelCase, Scale, variants_of

EPOCH = 3


def cases(scale: Scale, dtype: torch.dtype) -> Iterator[KernelCase]:
    """Crop and flip of a batch and of up to eight, out of a set of 10,000 images (smoke: 20)."""
    num_images, side = (20, 8) if scale.smoke else (10_000, 32)
    for factor in (1,) if scale.smoke else (1, 2, 4, 8):
        shape = (factor * scale.batch, 3, side, side)
        plain = partial(_plain_augment, dtype=dtype)
        yield KernelCase(
            "augment",
            "x".join(map(str, shape)),
            shape,
            dtype,
            {"forward": torch.Size(shape).numel() * (1 + dtype.itemsize)},  # reads bytes, writes `dtype`
            partial(_augment_inputs, num_images, shape),
            partial(_plain_augment, dtype=torch.float64),
            variants_of(plain, partial(_fused_augment, dtype=dtype)),
        )


def _plain_augment(images: Tensor, index: Tensor, epoch: Tensor, *, dtype: torch.dtype) -> Tensor:
    # The epoch is a tensor: the copy of a Python number to the GPU could not be captured.
    return twin.augment(images, index, epoch, 255, dtype, 4, True, SEED)  # type: ignore[arg-type]


def _fused_augment(images: Tensor, index: Tensor, epoch: Tensor, *, dtype: torch.dtype) -> Tensor:
    return augment(images, index, EPOCH, 255, dtype, 4, True, SEED)


def _augment_inputs(num_images: int, shape: tuple[int, ...], draw: Draw) -> Inputs:
    images = draw.integers(256, num_images, shape[2], shape[3], shape[1]).to(torch.uint8)
    return {"images": images, "index": draw.integers(num_images, shape[0]), "epoch": draw.scalar(EPOCH)}
