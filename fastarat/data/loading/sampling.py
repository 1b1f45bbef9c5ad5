"""How an epoch is sampled: the order of its images and the part of each that is shown, functions of (seed, epoch).

Boxes are int32 [B, 4]: (left, top, width, height) in the stored image's pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from fastarat_kernels import philox
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.config.data import AugmentConfig
from fastarat.data.images.stored import StoredImages

BLOCK_BYTES = 8 * 2**20
"""How much is read at once: a disk's seek costs little beside it."""
WINDOW_BLOCKS = 64
"""The number of blocks whose images are mixed: half a GiB, which stays in the page cache meanwhile."""
TRIES = 10
ASPECT = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Sampling:
    """How batches are drawn, the same in all processes, and which of them this one is."""

    batch: int
    """images of a step, of all processes"""
    seed: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    order: Literal["random", "quasi-random"] = "random"
    size_in: Callable[[int], int | None] = lambda epoch: None
    """pixels of a side that images are brought to in an epoch; None: as they are stored"""
    rank: int = 0
    num_processes: int = 1

    def share(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """This process's part of a global batch `index` (int64 [B]), and the places of that part in it."""
        rows = torch.arange(len(index), device=index.device).tensor_split(self.num_processes)[self.rank]
        return index[rows], rows


def quasi_random_order(images: StoredImages, seed: int, epoch: int) -> Tensor:
    """All images, int64 [N]; a batch has images that lie near to each other on the disk.

    Blocks of neighbouring images come in random order, and the images of every `WINDOW_BLOCKS` blocks are mixed: for
    sets larger than the memory, on disks that are slow to seek.
    """
    stored = np.lexsort((images.offsets, images.files))
    block_of = np.empty(len(images), np.int64)
    block_of[stored] = (np.cumsum(images.lengths[stored]) - images.lengths[stored]) // BLOCK_BYTES
    _, block_of = np.unique(block_of, return_inverse=True)
    order = philox.permutation(seed, epoch, int(block_of.max()) + 1, stream=Stream.BLOCK_ORDER)
    window_of = torch.argsort(order)[torch.from_numpy(block_of)] // WINDOW_BLOCKS
    mixed = philox.permutation(seed, epoch, len(images))
    return mixed[torch.argsort(window_of[mixed], stable=True)]


def random_boxes(
    sizes: np.ndarray, index: np.ndarray, scale: tuple[float, float], *, seed: int, epoch: int
) -> np.ndarray:
    """A part of each image of random area and shape (Szegedy et al., 2015), a function of (seed, epoch, image).

    `sizes`: int32 [B, 2], (width, height). `index`: int64 [B], the images. The area is uniform in `scale` (shares of
    the image's), the logarithm of width / height uniform between those of 3/4 and 4/3. The first of ten draws that
    lies inside the image counts; if none does, the largest part in the middle that has a fitting shape.
    """
    draws = philox.uniform(seed, Stream.CROP, epoch, torch.from_numpy(index), (2 * TRIES + 2,)).numpy().astype(float)
    width, height = (sizes[:, i, None].astype(float) for i in range(2))
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draws[:, :TRIES])
    low, high = np.log(ASPECT)
    aspect = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    widths, heights = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first, rows = fits.argmax(1), np.arange(len(index))
    box = np.stack([widths[rows, first], heights[rows, first]], 1)
    places = np.floor(draws[:, 2 * TRIES :] * (sizes - box + 1))
    found = np.concatenate([places, box], 1)
    return np.where(fits.any(1)[:, None], found, _largest(sizes)).astype(np.int32)


def _largest(sizes: np.ndarray) -> np.ndarray:
    width, height = sizes[:, 0], sizes[:, 1]
    box_width = np.maximum(np.minimum(width, np.rint(height * ASPECT[1])), 1)
    box_height = np.maximum(np.minimum(height, np.rint(width / ASPECT[0])), 1)
    return _middle(sizes, np.stack([box_width, box_height], 1))


def central_boxes(sizes: np.ndarray, share: float) -> np.ndarray:
    """The square in the middle of each image whose side is `share` of the image's shorter one."""
    side = np.maximum(np.rint(share * sizes.min(1)), 1)
    return _middle(sizes, np.stack([side, side], 1)).astype(np.int32)


def whole_boxes(sizes: np.ndarray) -> np.ndarray:
    """All of each image."""
    return np.concatenate([np.zeros_like(sizes), sizes], 1).astype(np.int32)


def _middle(sizes: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.concatenate([(sizes - box) // 2, box], 1)
