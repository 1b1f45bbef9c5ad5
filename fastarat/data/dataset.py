"""What every source of images becomes: two splits of 8-bit pixels and labels."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ImageSet:
    """One split of a data set."""

    images: np.ndarray
    """uint8 [N, H, W, C], C-contiguous; may be a read-only memory map."""
    labels: np.ndarray
    """int64 [N], each in 0 … number of classes − 1."""


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of their classes."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    max_value: int
    """Pixels are `images / max_value` in [0, 1]: 255, or 16 for the digits."""
    fingerprint: str
    """SHA-256 over pixels and labels, the same however the set is stored."""


def from_arrays(name: str, train: ImageSet, test: ImageSet, classes: tuple[str, ...], max_value: int) -> Dataset:
    """The data set of these splits, with its fingerprint computed."""
    return Dataset(name, train, test, classes, max_value, fingerprint(train, test))


def fingerprint(train: ImageSet, test: ImageSet) -> str:
    """SHA-256 (64 hex digits) over types, shapes and bytes of pixels and labels."""
    digest = hashlib.sha256()
    for part in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{part.dtype} {part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def label_problem(labels: np.ndarray, classes: int) -> str | None:
    """What is wrong with `labels` where one is not in 0 … `classes` − 1, else None."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size == 0:
        return None
    return f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … {classes - 1} ({wrong.size} such labels)"
