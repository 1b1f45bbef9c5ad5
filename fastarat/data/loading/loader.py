"""What every loader gives the loop: the n-th batch of an epoch, whoever asks and whenever."""

from collections.abc import Generator
from typing import NamedTuple, Protocol

import torch
from fastarat_kernels import philox
from fastarat_kernels.philox import Stream
from torch import Tensor


class Batch(NamedTuple):
    """One process's share of a global batch, on the device."""

    x: Tensor
    """images [B, C, H, W] in [0, 1]"""
    y: Tensor
    """labels, int64 [B]"""
    rows: Tensor
    """the images' places in the global batch, int64 [B]: random numbers hang on them"""


class Loader(Protocol):
    """Order and augmentation are functions of (seed, epoch, index): the same for any number of
    processes and after any resume. A last batch that is not full is dropped."""

    num_images: int
    steps_per_epoch: int

    def batches(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The epoch's batches (epochs count from 1), from its `first_step` (from 0) on.

        At most one of the iterators of a loader is alive; closing one early leaves nothing behind.
        """
        ...

    def sample(self, epoch: int, num_images: int, augment: bool, batch: int) -> Generator[Batch, None, None]:
        """This process's share of `num_images` random images of the set, by `batch` images of all processes."""
        ...

    def close(self) -> None:
        """End what the loader keeps running. It is not used again."""
        ...


def random_sample(num_images: int, count: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` of `num_images` images, chosen by (seed, epoch): int64 [count]."""
    rows = torch.arange(num_images, device=device)
    keys = philox.words(seed, Stream.SUBSET, epoch, rows, 1)[:, 0]
    return torch.argsort(keys, stable=True)[:count]


def share_of(index: Tensor, rank: int, num_processes: int) -> tuple[Tensor, Tensor]:
    """A process's part of a global batch `index` (int64 [B]), and the places of that part in it."""
    rows = torch.arange(len(index), device=index.device).tensor_split(num_processes)[rank]
    return index[rows], rows
