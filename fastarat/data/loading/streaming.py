"""The streaming loader: images that are decoded as they are needed, ahead of the step and in the same order as ever."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np
import torch
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor

from fastarat.config.data import AugmentConfig, LoadingConfig
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Decoder, Request
from fastarat.data.loading.loader import Batch, random_sample, share_of
from fastarat.data.loading.sampling import central_boxes, quasi_random_order, random_boxes, random_order, whole_boxes

MAX_VALUE = 255


class StreamLoader:
    """See `Loader`. What is random is decided here; `decoder` turns requests for pixels into pixels.

    Order, padded crops and flips are those of the resident loader: where pixels are stored exactly, its batches are
    equal bit by bit. `batch` is the global batch. `size_in(epoch)`: pixels of a side; None as stored.
    """

    def __init__(
        self,
        images: StoredImages,
        decoder: Decoder,
        augment: AugmentConfig,
        loading: LoadingConfig,
        size_in: Callable[[int], int | None],
        batch: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        rank: int = 0,
        num_processes: int = 1,
        kernels: Kernels = PYTORCH,
    ):
        self.images, self.decoder, self.augment, self.loading, self.size_in = images, decoder, augment, loading, size_in
        self.batch, self.seed, self.device, self.dtype = batch, seed, device, dtype
        self.rank, self.num_processes, self.kernels = rank, num_processes, kernels
        self.labels = torch.from_numpy(images.labels).to(device)
        self.num_images = len(images)
        self.steps_per_epoch = self.num_images // batch

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """See `Loader.batches`."""
        order = self._order(epoch)[first_step * self.batch : self.steps_per_epoch * self.batch]
        yield from self._batches(order, self.batch, epoch, augment=True)

    def sample(self, epoch: int, num_images: int, augment: bool, batch: int) -> Generator[Batch, None, None]:
        """See `Loader.sample`; the choice of images depends on (seed, epoch)."""
        chosen = random_sample(self.num_images, num_images, self.seed, epoch)
        yield from self._batches(chosen, batch, epoch, augment)

    def close(self) -> None:
        """See `Loader.close`."""
        self.decoder.close()

    def _order(self, epoch: int) -> Tensor:
        if self.loading.order == "quasi-random":
            return quasi_random_order(self.images, self.seed, epoch)
        return random_order(self.num_images, self.seed, epoch)

    def _batches(self, order: Tensor, batch: int, epoch: int, augment: bool) -> Generator[Batch, None, None]:
        if not len(order):
            return
        requests = (self._request(self._share(index)[0].numpy(), epoch, augment) for index in order.split(batch))
        there = order.to(self.device)  # once: a copy for each batch would wait for the step before
        with closing(self.decoder.decode(requests)) as decoded:
            for index, pixels in zip(there.split(batch), self._on_device(decoded), strict=True):
                yield self._batch(pixels, *self._share(index), epoch, augment)

    def _share(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return share_of(index, self.rank, self.num_processes)

    def _request(self, index: np.ndarray, epoch: int, augment: bool) -> Request:
        sizes, size = self.images.sizes[index], self.size_in(epoch)
        if size is None:
            width, height = self.images.sizes[0]  # all have it; a process may have no image of a small batch
            return Request(index, whole_boxes(sizes), (int(width), int(height)))
        if augment and self.augment.crop == "resized":
            boxes = random_boxes(sizes, index, self.augment.scale, self.seed, epoch)
        else:
            boxes = central_boxes(sizes, self.augment.central_share)
        return Request(index, boxes, (size, size))

    def _on_device(self, decoded: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pixels copied on a stream of their own, so that the copy runs beside the step before."""
        if self.device.type != "cuda":
            yield from decoded
            return
        stream = torch.cuda.Stream(self.device)
        for pixels in decoded:
            with torch.cuda.stream(stream):
                copied = pixels.to(self.device, non_blocking=True)
            now = torch.cuda.current_stream(self.device)
            now.wait_stream(stream)
            copied.record_stream(now)
            yield copied

    def _batch(self, pixels: Tensor, index: Tensor, rows: Tensor, epoch: int, augment: bool) -> Batch:
        is_padded = self.augment.crop == "padded"
        x = self.kernels.augment(
            pixels,
            torch.arange(len(pixels), device=self.device),
            epoch=epoch,
            max_value=MAX_VALUE,
            dtype=self.dtype,
            crop_padding=self.augment.crop_padding if augment and is_padded else 0,
            flip=augment and self.augment.flip,
            seed=self.seed,
            identity=index,
        )
        return Batch(x, self.labels[index], rows)
