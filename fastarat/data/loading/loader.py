"""What every loader gives the loop: the n-th batch of an epoch, the same for every process and after every resume."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import NamedTuple

import torch
from fastarat_kernels import philox
from fastarat_kernels.implementations import Kernels
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.data.images.dataset import MAX_VALUE
from fastarat.data.loading.sampling import Sampling


class Batch(NamedTuple):
    """One process's share of a global batch, on the device."""

    x: Tensor
    """images [B, C, H, W] in [0, 1]"""
    y: Tensor
    """labels, int64 [B]"""
    rows: Tensor
    """the images' places in the global batch, int64 [B]: random numbers depend on them"""


class Loader(ABC):
    """Batches of `num_images` images, made by `kernels` in `dtype`; their order is computed on `order_device`.

    Order and augmentation are functions of (seed, epoch, index): the same for any number of processes and after any
    resume. A last batch that is not full is dropped.
    """

    dtype: torch.dtype
    kernels: Kernels
    """crop and flip; others may take their place between two batches"""
    max_value: int = MAX_VALUE
    """pixels are stored values / `max_value`"""

    def __init__(self, num_images: int, sampling: Sampling, order_device: torch.device):
        self.num_images, self.sampling, self.order_device = num_images, sampling, order_device
        self.steps_per_epoch = num_images // sampling.batch

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The epoch's batches (epochs count from 1), from its `first_step` (from 0) on.

        At most one of the iterators of a loader is alive; closing one early leaves nothing behind.
        """
        batch = self.sampling.batch
        order = self._order(epoch)[first_step * batch : self.steps_per_epoch * batch]
        if len(order):
            yield from self._batches(order, batch, epoch, augment=True)

    def sample(self, epoch: int, num_images: int, *, augment: bool, batch: int) -> Generator[Batch, None, None]:
        """This process's share of `num_images` random images of the set, chosen by (seed, epoch), by `batch` images of
        all processes."""
        rows = torch.arange(self.num_images, device=self.order_device)
        keys = philox.words(self.sampling.seed, Stream.SUBSET, epoch, rows, 1)[:, 0]
        yield from self._batches(torch.argsort(keys, stable=True)[:num_images], batch, epoch, augment=augment)

    @abstractmethod
    def _order(self, epoch: int) -> Tensor:
        """All images in the epoch's order: int64, at least `steps_per_epoch` batches of them."""

    @abstractmethod
    def _batches(self, order: Tensor, batch: int, epoch: int, *, augment: bool) -> Generator[Batch, None, None]:
        """This process's shares of the images `order`, int64 [N], N > 0, taken by `batch`."""

    def _augmented(
        self, pixels: Tensor, index: Tensor, epoch: int, *, augment: bool = True, identity: Tensor | None = None
    ) -> Tensor:
        """The images `index` of `pixels`, uint8 [N, H, W, C], as [B, C, H, W] in [0, 1]: flipped, and cropped where
        crops are padded, as the images of the set that `identity` (int64 [B], default `index`) says."""
        settings = self.sampling.augment
        return self.kernels.augment(
            pixels,
            index,
            epoch=epoch,
            max_value=self.max_value,
            dtype=self.dtype,
            crop_padding=settings.crop_padding if augment and settings.crop == "padded" else 0,
            flip=augment and settings.flip,
            seed=self.sampling.seed,
            identity=identity,
        )

    @abstractmethod
    def close(self) -> None:
        """End what the loader keeps running. It is not used again."""
