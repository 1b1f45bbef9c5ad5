"""The order of an epoch's images, a function of (seed, epoch)."""

import numpy as np
import torch
from fastarat_kernels import philox
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.data.images.stored import StoredImages

BLOCK_BYTES = 8 * 2**20
"""What is read at a go: a disk's seek costs little against it."""
WINDOW_BLOCKS = 64
"""Blocks whose images are mixed: half a GiB, which stays in the page cache meanwhile."""


def random_order(num_images: int, seed: int, epoch: int) -> Tensor:
    """All images in random order: int64 [N]."""
    return philox.permutation(seed, epoch, num_images)


def quasi_random_order(images: StoredImages, seed: int, epoch: int) -> Tensor:
    """All images, int64 [N], near to each other in a batch where they lie near to each other on the disk.

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
