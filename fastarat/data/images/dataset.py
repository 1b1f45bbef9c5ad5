"""What every source of images becomes: two splits of 8-bit pixels and labels."""

import hashlib
from dataclasses import dataclass

import numpy as np

from fastarat.data.images.stored import STORED, StoredImages

MOST_CLASSES = 2**16


@dataclass(frozen=True)
class Images:
    """One split of a data set."""

    images: np.ndarray
    """uint8 [N, H, W, C], C-contiguous; may be a read-only memory map."""
    labels: np.ndarray
    """int64 [N], each in 0 … number of classes − 1."""

    def take(self, index: np.ndarray) -> "Images":
        """The images `index` (int64 [M]), in this order."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of their classes."""

    name: str
    train: Images | StoredImages
    """Decoded, or as they are stored: to be decoded batch by batch."""
    test: Images
    classes: tuple[str, ...]
    max_value: int
    """Pixels are `images / max_value` in [0, 1]: 255, or 16 for the digits."""
    fingerprint: str
    """SHA-256: of decoded images over pixels and labels, the same however the set is stored."""
    matched: str = ""
    """how its classes were matched with a model's or another set's (`classes.Match.how`)"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that nets see."""
        height, width, channels = self.test.images.shape[1:]
        return height, width, channels

    @property
    def labels_fingerprint(self) -> str:
        """SHA-256 over the labels of both splits: the same whether images are decoded or not."""
        return hashlib.sha256(
            b"".join(np.ascontiguousarray(p.labels).data for p in (self.train, self.test))
        ).hexdigest()

    @property
    def decoded_train(self) -> Images:
        """The training images where they are decoded."""
        assert isinstance(self.train, Images)
        return self.train


def from_arrays(name: str, train: Images, test: Images, classes: tuple[str, ...], max_value: int) -> Dataset:
    """The data set of these splits, with its fingerprint computed."""
    return Dataset(name, train, test, classes, max_value, fingerprint(train, test))


def fingerprint(train: Images, test: Images) -> str:
    """SHA-256 (64 hex digits) over types, shapes and bytes of pixels and labels."""
    digest = hashlib.sha256()
    for part in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{part.dtype} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def other_images(dataset: Dataset, fingerprint: str | None, labels: str | None) -> bool:
    """Whether these fingerprints, where they are known, are of other images than the data set's.

    Fingerprints of decoded and of stored images cannot be compared; those of their labels can.
    """
    if fingerprint is None or fingerprint == dataset.fingerprint:
        return False
    of_another_kind = fingerprint.startswith(STORED) != dataset.fingerprint.startswith(STORED)
    return not of_another_kind or labels != dataset.labels_fingerprint


def label_problem(labels: np.ndarray, classes: int) -> str | None:
    """What is wrong with `labels` where one is not in 0 … `classes` − 1, else None."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size == 0:
        return None
    return f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … {classes - 1} ({wrong.size} such labels)"
