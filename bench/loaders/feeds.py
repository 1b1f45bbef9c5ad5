"""What is timed: batches of uint8 pixels in the host's memory, epoch by epoch, from each loader.

Crops inside the image, flips and normalisation happen on the training's device, the same for all, and are not timed.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fastarat_kernels import philox
from torch import Tensor

from bench.loaders.cases import LoaderCase
from fastarat.config.data import AugmentConfig, LoadingConfig
from fastarat.data.images.stored import StoredImages
from fastarat.data.images.whole_sets import common_size
from fastarat.data.loading.build import build_decoder
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.sampling import random_boxes, whole_boxes

LOADERS = ("resident", "plain", "ffcv", "dali", "ffcv-own")
"""ffcv-own: FFCV's own loader, crops and random numbers, for comparison with what fastarat takes of it"""
SEED = 0


class Feed(ABC):
    """A loader at work."""

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Tensor]:
        """All images once, in random order: uint8 [B, H, W, 3]."""

    def close(self) -> None:  # noqa: B027  some run in this process alone, or end with an epoch
        """End what runs."""


def feed_of(case: LoaderCase, images: StoredImages) -> Feed:
    """The loader, just started. The first batch may have to wait for much: imports, compilation, processes."""
    if case.loader == "resident":
        return ResidentFeed(case, images)
    return FFCVOwnFeed(case, len(images)) if case.loader == "ffcv-own" else DecoderFeed(case, images)


class DecoderFeed(Feed):
    """One of fastarat's decoders, asked for what its streaming loader asks for."""

    def __init__(self, case: LoaderCase, images: StoredImages):
        self.case, self.images = case, images
        device = torch.device("cuda", 0) if case.decode == "gpu" else torch.device("cpu")
        loading = LoadingConfig(workers=case.workers, decode=case.decode)
        self.decoder = build_decoder(case.loader, images, loading, num_processes=1, device=device)

    def epoch(self, number: int) -> Iterator[Tensor]:
        return self.decoder.decode(requests(self.case, self.images, number))

    def close(self) -> None:
        self.decoder.close()


class ResidentFeed(Feed):
    """Every image in memory, as the resident loader has them: a batch is one gather."""

    def __init__(self, case: LoaderCase, images: StoredImages):
        width, height = common_size("the store", images)
        self.case, self.pixels = case, np.empty((len(images), height, width, 3), np.uint8)
        for i in range(len(images)):
            self.pixels[i] = np.frombuffer(images.read(i), np.uint8).reshape(height, width, 3)

    def epoch(self, number: int) -> Iterator[Tensor]:
        pixels = torch.from_numpy(self.pixels)
        for index in philox.permutation(SEED, number, len(pixels)).split(self.case.batch):
            yield pixels[index]


class FFCVOwnFeed(Feed):
    """FFCV's loader as its documentation has it: random order, its own decoders with their random crops."""

    def __init__(self, case: LoaderCase, num_images: int):
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import OrderOption

        resized = RandomResizedCropRGBImageDecoder((case.size, case.size), scale=AugmentConfig.scale)
        decoder = resized if case.crop == "resized" else whole_decoder()
        self.loader = ffcv_loader(case, num_images, OrderOption.RANDOM, decoder=decoder)

    def epoch(self, number: int) -> Iterator[Tensor]:
        for (pixels,) in self.loader:
            yield pixels


def whole_decoder() -> Any:
    """FFCV's decoder of images that have one size."""
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder

    return SimpleRGBImageDecoder()


def ffcv_loader(case: LoaderCase, num_images: int, order: Any, *, decoder: Any) -> Any:
    """FFCV's own loader of the training images, which lie before the test images. Its batches are overwritten."""
    from ffcv.loader import Loader
    from ffcv.reader import Reader
    from ffcv.transforms import ToTensor

    pipelines: dict[str, Any] = dict.fromkeys(Reader(case.path).handlers)  # nothing but the images is read
    return Loader(
        case.path,
        case.batch,
        case.workers,
        order=order,
        indices=range(num_images),
        drop_last=False,
        pipelines={**pipelines, "image": [decoder, ToTensor()]},
    )


def requests(case: LoaderCase, images: StoredImages, epoch: int) -> Iterator[Request]:
    """What the streaming loader asks for in an epoch."""
    for index in philox.permutation(SEED, epoch, len(images)).split(case.batch):
        rows = index.numpy()
        sizes, boxes = images.sizes[rows], whole_boxes(images.sizes[rows])
        if case.crop == "resized":
            boxes = random_boxes(sizes, rows, AugmentConfig.scale, seed=SEED, epoch=epoch)
        yield Request(rows, boxes, (case.size, case.size))


def forget(paths: tuple[str, ...]) -> None:
    """Ask the system to drop these files from its page cache, so that a first epoch reads the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
