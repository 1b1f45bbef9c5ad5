"""What is timed: batches of uint8 pixels in the host's memory, epoch by epoch, from each loader.

Crops inside the image, flips and normalisation happen on the training's device, the same for all, and are not timed.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from fastarat_kernels import philox
from torch import Tensor

from fastarat.config.data import AugmentConfig, LoadingConfig
from fastarat.data.formats.find import find
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.build import build_decoder
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.sampling import random_boxes, whole_boxes

LOADERS = ("resident", "plain", "ffcv", "dali", "ffcv-own")
"""ffcv-own: FFCV's own loader, crops and random numbers, for comparison with what fastarat takes of it"""
SEED = 0


@dataclass(frozen=True)
class Form:
    """What one process measures: a loader on a form of the data."""

    loader: str
    path: str
    """of the store"""
    reference: str
    """the store whose images PIL reads for the comparison"""
    size: int
    """pixels of a side of what is decoded"""
    crop: Literal["whole", "resized"]
    """all of each image, which has that size; or a part of random area and shape, resized to it"""
    batch: int
    workers: int
    decode: Literal["cpu", "gpu"] = "cpu"
    """DALI: where JPEGs are decoded"""

    def images(self) -> StoredImages:
        """The training images, where they lie."""
        return find(self.path).open_stored().stored_splits["train"]


class Feed(Protocol):
    """A loader at work."""

    def epoch(self, number: int) -> Iterator[Tensor]:
        """All images once, in random order: uint8 [B, H, W, 3]."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


def feed_of(form: Form, images: StoredImages) -> Feed:
    """The loader, just started. The first batch may have to wait for much: imports, compilation, processes."""
    if form.loader == "resident":
        return ResidentFeed(form, images)
    return FFCVOwnFeed(form, len(images)) if form.loader == "ffcv-own" else DecoderFeed(form, images)


class DecoderFeed:
    """One of fastarat's decoders, asked for what its streaming loader asks for."""

    def __init__(self, form: Form, images: StoredImages):
        self.form, self.images = form, images
        device = torch.device("cuda", 0) if form.decode == "gpu" else torch.device("cpu")
        loading = LoadingConfig(workers=form.workers, decode=form.decode)
        self.decoder = build_decoder(form.loader, images, loading, num_processes=1, device=device)

    def epoch(self, number: int) -> Iterator[Tensor]:
        return self.decoder.decode(requests(self.form, self.images, number))

    def close(self) -> None:
        self.decoder.close()


class ResidentFeed:
    """Every image in memory, as the resident loader has them: a batch is one gather."""

    def __init__(self, form: Form, images: StoredImages):
        width, height = common_size(images)
        self.form, self.pixels = form, np.empty((len(images), height, width, 3), np.uint8)
        for i in range(len(images)):
            self.pixels[i] = np.frombuffer(images.read(i), np.uint8).reshape(height, width, 3)

    def epoch(self, number: int) -> Iterator[Tensor]:
        pixels = torch.from_numpy(self.pixels)
        for index in philox.permutation(SEED, number, len(pixels)).split(self.form.batch):
            yield pixels[index]

    def close(self) -> None:
        """Nothing runs."""


class FFCVOwnFeed:
    """FFCV's loader as its documentation has it: random order, its own decoders with their random crops."""

    def __init__(self, form: Form, num_images: int):
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import OrderOption

        resized = RandomResizedCropRGBImageDecoder((form.size, form.size), scale=AugmentConfig.scale)
        decoder = resized if form.crop == "resized" else whole_decoder()
        self.loader = ffcv_loader(form, num_images, OrderOption.RANDOM, decoder=decoder)

    def epoch(self, number: int) -> Iterator[Tensor]:
        for (pixels,) in self.loader:
            yield pixels

    def close(self) -> None:
        """Its threads end with an epoch."""


def whole_decoder() -> Any:
    """FFCV's decoder of images that have one size."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder

    return SimpleRGBImageDecoder()


def ffcv_loader(form: Form, num_images: int, order: Any, *, decoder: Any) -> Any:
    """FFCV's own loader of the training images, which lie before the test images. Its batches are overwritten."""
    from ffcv.loader import Loader
    from ffcv.reader import Reader
    from ffcv.transforms import ToTensor

    pipelines: dict[str, Any] = dict.fromkeys(Reader(form.path).handlers)  # nothing but the images is read
    return Loader(
        form.path,
        form.batch,
        form.workers,
        order=order,
        indices=range(num_images),
        drop_last=False,
        pipelines={**pipelines, "image": [decoder, ToTensor()]},
    )


def requests(form: Form, images: StoredImages, epoch: int) -> Iterator[Request]:
    """What the streaming loader asks for in an epoch."""
    for index in philox.permutation(SEED, epoch, len(images)).split(form.batch):
        rows = index.numpy()
        yield Request(rows, boxes(form, images, rows, epoch=epoch), (form.size, form.size))


def boxes(form: Form, images: StoredImages, index: np.ndarray, *, epoch: int) -> np.ndarray:
    """The parts of the images `index` that are shown: int32 [B, 4]."""
    sizes = images.sizes[index]
    if form.crop == "whole":
        return whole_boxes(sizes)
    return random_boxes(sizes, index, AugmentConfig.scale, seed=SEED, epoch=epoch)


def common_size(images: StoredImages) -> tuple[int, int]:
    """The (width, height) of all images."""
    size = images.common_size()
    assert size is not None, "stores of arrays have one size"
    return size


def forget(paths: tuple[str, ...]) -> None:
    """Ask the system to drop these files from its page cache, so that a first epoch reads the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
