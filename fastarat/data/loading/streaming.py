"""The streaming loader: images are decoded ahead of the step that needs them, in the resident loader's order."""

from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch
from fastarat_kernels import philox
from fastarat_kernels.implementations import PYTORCH, Kernels
from torch import Tensor

from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Decoder, Request
from fastarat.data.loading.loader import Batch, Loader
from fastarat.data.loading.sampling import Sampling, central_boxes, quasi_random_order, random_boxes, whole_boxes


class StreamLoader(Loader):
    """See `Loader`. What is random is decided here; `decoder` turns requests for pixels into pixels.

    Order, padded crops and flips are those of the resident loader: where pixels are stored exactly, both give the same
    batches, bit by bit.
    """

    def __init__(
        self,
        images: StoredImages,
        decoder: Decoder,
        sampling: Sampling,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels = PYTORCH,
    ):
        super().__init__(len(images), sampling, torch.device("cpu"))
        self.images, self.decoder, self.device, self.dtype, self.kernels = images, decoder, device, dtype, kernels
        self.labels = torch.from_numpy(images.labels).to(device)

    def close(self) -> None:
        """See `Loader.close`."""
        self.decoder.close()

    def _order(self, epoch: int) -> Tensor:
        if self.sampling.order == "quasi-random":
            return quasi_random_order(self.images, self.sampling.seed, epoch)
        return philox.permutation(self.sampling.seed, epoch, self.num_images)

    def _batches(self, order: Tensor, batch: int, epoch: int, *, augment: bool) -> Generator[Batch, None, None]:
        share = self.sampling.share
        requests = (self._request(share(index)[0].numpy(), epoch, augment) for index in order.split(batch))
        there = order.to(self.device)  # once: a copy for each batch would wait for the step before
        with closing(self.decoder.decode(requests)) as decoded:
            for index, pixels in zip(there.split(batch), self._on_device(decoded), strict=True):
                index, rows = share(index)
                places = torch.arange(len(pixels), device=self.device)
                x = self._augmented(pixels, places, epoch, augment=augment, identity=index)
                yield Batch(x, self.labels[index], rows)

    def _request(self, index: np.ndarray, epoch: int, augment: bool) -> Request:
        sampling, sizes = self.sampling, self.images.sizes[index]
        size = sampling.size_in(epoch)
        if size is None:
            width, height = self.images.sizes[0]  # all have it; a process may have no image of a small batch
            return Request(index, whole_boxes(sizes), (int(width), int(height)))
        if augment and sampling.augment.crop == "resized":
            boxes = random_boxes(sizes, index, sampling.augment.scale, seed=sampling.seed, epoch=epoch)
        else:
            boxes = central_boxes(sizes, sampling.augment.central_share)
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
