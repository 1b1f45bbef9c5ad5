"""Whether a loader's pixels are those of PIL on the same files. What is wrong gets no speed."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from bench.loaders.cases import LoaderCase
from bench.loaders.feeds import DecoderFeed, feed_of, ffcv_loader, requests, whole_decoder
from fastarat.data.formats.find import find
from fastarat.data.images.decoding import pixels_of
from fastarat.data.images.stored import StoredImages
from fastarat.data.loading.decoders.decoder import Request
from fastarat.data.loading.sampling import central_boxes, whole_boxes

NUM_BATCHES = 2
KEPT_SIDE = 128
"""pixels of a side, or the smallest image's, of the part that is compared without resizing"""
MOST_KEPT = 2.0
"""Decoders of JPEG differ in how they round and fill in the colours, stored at half the resolution: mean of a batch, in
grey levels. FFCV has 1.0 in photographs; a part off by one pixel has 8, the wrong part 40."""
MOST_RESIZED = 5.0
"""Filters differ when they shrink. FFCV's has 1.3 in photographs, and up to 3 in noise."""


@dataclass(frozen=True)
class Differences:
    """Between a loader's pixels and PIL's, in grey levels (0 to 255); None where there is nothing to compare."""

    exact: float | None = None
    """the largest, of what is stored without loss and not resized: has to be 0"""
    kept: float | None = None
    """mean, of parts of JPEGs that are not resized"""
    kept_most: float | None = None
    resized: float | None = None
    """mean, of resized parts"""

    @property
    def problem(self) -> str | None:
        """What is wrong with them."""
        if self.exact:
            return f"WRONG: pixels differ by up to {self.exact:.0f} grey levels from what is stored"
        for what, mean, most in (("decoded", self.kept, MOST_KEPT), ("resized", self.resized, MOST_RESIZED)):
            if mean is not None and not mean <= most:
                return f"WRONG: {what} pixels differ by {mean:.2f} grey levels from PIL's (allowed: {most:g})"
        return None


def differences(case: LoaderCase) -> Differences:
    """Of the first batches. Raises `ValueError` if labels or sizes are not the reference's."""
    images, reference = case.images(), find(case.reference).open_stored().stored_splits["train"]
    for name in ("labels", "sizes"):
        if not np.array_equal(getattr(images, name), getattr(reference, name)):
            raise ValueError(f"WRONG: {name} are not those of the files, in their order")
    timed = _own(case, images) if case.loader == "ffcv-own" else _timed(case, images)
    most, mean = _compare(timed, reference)
    if case.crop == "whole":
        return Differences(exact=most)
    if case.loader == "ffcv-own":  # every part of an image is resized there
        return Differences(resized=mean)
    kept_most, kept = _compare(_kept(case, images), reference)
    return Differences(kept=kept, kept_most=kept_most, resized=mean)


Part = tuple[Request, Tensor]


def _compare(parts: Iterator[Part], reference: StoredImages) -> tuple[float, float]:
    """The largest difference of a pixel, and the mean of the worst batch."""
    found = []
    for request, pixels in parts:
        pairs = zip(request.index, request.boxes, strict=True)
        right = np.stack([pixels_of(reference.file(int(i)), box, request.size) for i, box in pairs])
        if tuple(pixels.shape) != right.shape or pixels.dtype != torch.uint8:
            raise ValueError(f"WRONG: a batch is {pixels.dtype} {tuple(pixels.shape)}, not uint8 {right.shape}")
        difference = np.abs(pixels.cpu().numpy().astype(np.int16) - right)
        found.append((float(difference.max()), float(difference.mean())))
    if not found:
        raise ValueError("WRONG: there is no batch")
    most, means = zip(*found, strict=True)
    return max(most), max(means)


def _timed(case: LoaderCase, images: StoredImages) -> Iterator[Part]:
    """The first batches of those that will be timed."""
    with closing(feed_of(case, images)) as feed:
        yield from _paired(requests(case, images, 1), feed.epoch(1))


def _kept(case: LoaderCase, images: StoredImages) -> Iterator[Part]:
    """The middle of each image, without resizing."""
    side = min(KEPT_SIDE, int(images.sizes.min()))
    boxes = np.concatenate([(images.sizes - side) // 2, np.full_like(images.sizes, side)], 1)
    asked = [Request(rows, boxes[rows], (side, side)) for rows in _in_order(case, images)]
    with closing(DecoderFeed(case, images)) as feed:
        yield from _paired(iter(asked), feed.decoder.decode(asked))


def _own(case: LoaderCase, images: StoredImages) -> Iterator[Part]:
    """FFCV's own loader in the stored order, with its fixed crop in place of the random one."""
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
    from ffcv.loader import OrderOption

    size = (case.size, case.size)
    decoder, boxes_of = whole_decoder(), whole_boxes
    if case.crop == "resized":
        decoder, boxes_of = CenterCropRGBImageDecoder(size, ratio=1.0), partial(central_boxes, share=1.0)
    asked = [Request(rows, boxes_of(images.sizes[rows]), size) for rows in _in_order(case, images)]
    own = ffcv_loader(case, len(images), OrderOption.SEQUENTIAL, decoder=decoder)
    yield from _paired(iter(asked), (pixels for (pixels,) in own))


def _paired(asked: Iterator[Request], batches: Iterator[Tensor]) -> Iterator[Part]:
    # Ended early by whoever takes the first few: what runs behind the batches ends too.
    for request, pixels in islice(zip(asked, batches, strict=False), NUM_BATCHES):
        yield request, pixels.clone()
    if close := getattr(batches, "close", None):
        close()


def _in_order(case: LoaderCase, images: StoredImages) -> list[np.ndarray]:
    return list(np.split(np.arange(len(images)), range(case.batch, len(images), case.batch)))
