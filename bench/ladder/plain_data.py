"""How plain trainings get their batches: PIL in worker processes, or a few operations on the device."""

import warnings
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastarat.config.data import AugmentConfig
from fastarat.data.images.dataset import Images
from fastarat.data.loading.loader import Batch

NUM_WORKERS = 8


class Source(NamedTuple):
    """Images and how they are augmented."""

    images: Images
    max_value: int
    augment: AugmentConfig


class PILImages(TorchDataset):
    """One image at a time: cropped and flipped by PIL, then a float tensor in [0, 1]."""

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, max_value, augment = self.source
        pixels, padding = images.images[index], augment.crop_padding
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        width, height = image.size
        left, top = torch.randint(2 * padding + 1, (2,)).tolist()
        image = ImageOps.expand(image, padding).crop((left, top, left + width, top + height))
        if augment.flip and torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        values = np.asarray(image, np.float32).reshape(pixels.shape) / max_value
        return torch.from_numpy(values).permute(2, 0, 1).contiguous(), int(images.labels[index])


def worker_batches(source: Source, batch: int, device: torch.device) -> Generator[Batch, None, None]:
    """Batches without end from 8 worker processes, NCHW."""
    # As many as published code starts, however many cores there are.
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    loader = DataLoader(
        PILImages(source),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=NUM_WORKERS,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )
    rows = torch.arange(batch, device=device)
    while True:
        for x, y in loader:
            yield Batch(x.to(device, non_blocking=True), y.to(device, non_blocking=True), rows)


def resident_batches(
    source: Source, batch: int, device: torch.device, *, layout: torch.memory_format
) -> Generator[Batch, None, None]:
    """Batches without end from uint8 images on the device, cropped and flipped there in plain PyTorch."""
    pixels = torch.from_numpy(source.images.images.copy()).to(device).permute(0, 3, 1, 2)
    pixels = pixels.contiguous(memory_format=layout)
    labels = torch.from_numpy(source.images.labels.copy()).to(device)
    rows = torch.arange(batch, device=device)
    while True:
        for index in torch.randperm(len(labels), device=device).split(batch):
            if len(index) == batch:
                x = crop_and_flip(pixels[index], source.augment).float().div_(source.max_value)
                yield Batch(x.contiguous(memory_format=layout), labels[index], rows)


def crop_and_flip(x: Tensor, augment: AugmentConfig) -> Tensor:
    """A random crop of each zero-padded image [B, C, H, W], every second one mirrored."""
    num, _, height, width = x.shape
    padding = augment.crop_padding
    top, left = torch.randint(2 * padding + 1, (2, num, 1), device=x.device)
    columns = torch.arange(width, device=x.device).expand(num, -1)
    if augment.flip:
        mirrored = torch.rand(num, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = (columns + left)[:, None, None, :]
    rows = (torch.arange(height, device=x.device) + top)[:, None, :, None]
    image = torch.arange(num, device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return pad(x, (padding,) * 4)[image, channel, rows, columns]
