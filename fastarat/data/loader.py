"""What every loader gives the loop: the n-th batch of an epoch, whoever asks and whenever."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

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

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches (epochs count from 1), from its `first_step` (from 0) on."""
        ...

    def sample(self, epoch: int, num_images: int, augment: bool, batch: int) -> Iterator[Batch]:
        """This process's share of `num_images` random images of the set, by `batch` images of all processes."""
        ...
