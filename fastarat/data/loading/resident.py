"""The resident loader: the whole set as uint8 on the device; a batch costs one gather there."""

from collections.abc import Generator

import numpy as np
import torch
from fastarat_kernels import philox
from fastarat_kernels.augment.gather import gather
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor

from fastarat.config.data import AugmentConfig
from fastarat.data.images.dataset import Images
from fastarat.data.loading.extra import Mixture
from fastarat.data.loading.loader import Batch, random_sample, share_of


class ResidentLoader:
    """See `Loader`. `batch` is the global batch, divided evenly among `num_processes`.

    Of `extra` images, if given, every batch has a share of `ratio`; samples are of `images` alone.
    """

    def __init__(
        self,
        images: Images,
        max_value: int,
        augment: AugmentConfig,
        batch: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        rank: int = 0,
        num_processes: int = 1,
        kernels: Kernels = PYTORCH,
        extra: Images | None = None,
        ratio: float = 0.5,
    ):
        parts = [images] if extra is None else [images, extra]
        self.images = _joined([part.images for part in parts], device)
        self.labels = _joined([part.labels for part in parts], device)
        self.max_value, self.augment, self.batch, self.seed, self.dtype = (
            max_value,
            augment,
            batch,
            seed,
            dtype,
        )
        self.rank, self.num_processes, self.kernels = rank, num_processes, kernels
        self.num_images = len(images.labels)
        self.mixture = Mixture(self.num_images, len(extra.labels), batch, ratio, seed) if extra else None
        self.steps_per_epoch = self.num_images // batch

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """See `Loader.batches`."""
        device = self.images.device
        if self.mixture:
            order = self.mixture.order(epoch, device)
        else:
            order = philox.permutation(self.seed, epoch, self.num_images, device)
        for step in range(first_step, self.steps_per_epoch):
            yield self._batch(order[step * self.batch : (step + 1) * self.batch], epoch, True)

    def sample(self, epoch: int, num_images: int, augment: bool, batch: int) -> Generator[Batch, None, None]:
        """See `Loader.sample`; the choice of images depends on (seed, epoch)."""
        chosen = random_sample(self.num_images, num_images, self.seed, epoch, self.images.device)
        for index in chosen.split(batch):
            yield self._batch(index, epoch, augment)

    def close(self) -> None:
        """See `Loader.close`: nothing runs."""

    def _batch(self, index: Tensor, epoch: int, augment: bool) -> Batch:
        index, rows = share_of(index, self.rank, self.num_processes)
        if augment:
            x = self.kernels.augment(
                self.images,
                index,
                epoch=epoch,
                max_value=self.max_value,
                dtype=self.dtype,
                crop_padding=self.augment.crop_padding,
                flip=self.augment.flip,
                seed=self.seed,
            )
        else:
            x = gather(self.images, index, self.max_value, self.dtype)
        return Batch(x, self.labels[index], rows)


def _joined(parts: list[np.ndarray], device: torch.device) -> Tensor:
    """One tensor on the device, which each part is copied into: the host holds no second copy of all."""
    first = parts[0]
    dtype = torch.from_numpy(first[:0].copy()).dtype
    joined = torch.empty((sum(map(len, parts)), *first.shape[1:]), dtype=dtype, device=device)
    for part, space in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        space.copy_(torch.from_numpy(part.copy()))
    return joined
