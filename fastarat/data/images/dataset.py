"""What every source of images becomes: two splits of 8-bit pixels and labels."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastarat.data.images.stored import STORED, StoredImages

MOST_CLASSES = 2**16
SPLITS = ("train", "test")
MAX_VALUE = 255
"""of images in files, and of most others"""


ONE_CLASS = "one class: nothing to classify, give two or more"


@dataclass(frozen=True)
class Images:
    """One split of a data set."""

    images: np.ndarray
    """uint8 [N, H, W, C], C-contiguous; may be a read-only memory map."""
    labels: np.ndarray
    """int64 [N], each in 0 … number of classes − 1."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> "Images":
        """The images `index` (int64 [M]), in this order."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of their classes."""

    name: str
    train: Images | StoredImages
    """Decoded, or as they are stored: to be decoded batch by batch."""
    test: Images | StoredImages
    classes: tuple[str, ...]
    max_value: int
    """Pixels are `images / max_value` in [0, 1]: 255, or 16 for the digits."""
    fingerprint: str
    """See `fingerprint`; where only test images are decoded, that of the stored ones."""
    matched: str = ""
    """how its classes were matched with a model's or another set's (`classes.Match.how`)"""
    num_skipped: int = 0
    """images left out because they cannot be decoded"""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that nets see."""
        height, width, channels = self.decoded_test.images.shape[1:]
        return height, width, channels

    @property
    def labels_fingerprint(self) -> str:
        """SHA-256 over the labels of both splits: the same whether images are decoded or not."""
        return hashlib.sha256(
            b"".join(np.ascontiguousarray(p.labels).data for p in (self.train, self.test))
        ).hexdigest()

    @property
    def splits(self) -> dict[str, Images | StoredImages]:
        """Both, by name."""
        return {"train": self.train, "test": self.test}

    @property
    def stored_splits(self) -> dict[str, StoredImages]:
        """Both, where nothing is decoded."""
        return {name: split for name, split in self.splits.items() if isinstance(split, StoredImages)}

    @property
    def decoded_train(self) -> Images:
        """The training images where they are decoded."""
        assert isinstance(self.train, Images)
        return self.train

    @property
    def decoded_test(self) -> Images:
        """The test images where they are decoded."""
        assert isinstance(self.test, Images)
        return self.test


def from_splits(
    name: str,
    train: Images | StoredImages,
    test: Images | StoredImages,
    classes: tuple[str, ...],
    max_value: int = MAX_VALUE,
) -> Dataset:
    """The data set of these splits, with its fingerprint computed."""
    return Dataset(name, train, test, classes, max_value, fingerprint(train, test))


def fingerprint(*splits: Images | StoredImages) -> str:
    """SHA-256 (64 hex digits) over types, shapes and bytes of pixels and labels, the same however the set is stored.

    Of images as they are stored no image is read for it: `STORED`, and the SHA-256 over names, sizes, lengths, labels.
    """
    digest = hashlib.sha256()
    for split in splits:
        is_stored = isinstance(split, StoredImages)
        for values in (split.labels, split.sizes, split.lengths) if is_stored else (split.images, split.labels):
            digest.update(f"{values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        if is_stored:
            digest.update(os.fsencode("\n".join(split.names)))
    return (STORED if isinstance(splits[0], StoredImages) else "") + digest.hexdigest()


def other_images(dataset: Dataset, fingerprint: str | None, labels: str | None) -> bool:
    """Whether these fingerprints, where they are known, are of other images than the data set's.

    Fingerprints of decoded and of stored images cannot be compared; those of their labels can.
    """
    if fingerprint is None or fingerprint == dataset.fingerprint:
        return False
    of_another_kind = fingerprint.startswith(STORED) != dataset.fingerprint.startswith(STORED)
    return not of_another_kind or labels != dataset.labels_fingerprint


def class_counts(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """The number of images of each class, for each split."""
    count = len(dataset.classes)
    return {name: tuple(np.bincount(split.labels, minlength=count).tolist()) for name, split in dataset.splits.items()}


def described(dataset: Dataset) -> dict[str, Any]:
    """Plain values for a table or JSON. `bytes` counts pixels, of stored images files; `sizes`, of stored images, is
    the least, median and largest (width, height)."""
    counts = class_counts(dataset)
    if stored := dataset.stored_splits:
        sizes = np.concatenate([split.sizes for split in stored.values()])
        span = {"min": sizes.min(0), "median": np.median(sizes, 0).astype(int), "max": sizes.max(0)}
        shape = {"sizes": {name: values.tolist() for name, values in span.items()}}
        num_bytes = sum(int(split.lengths.sum()) for split in stored.values())
    else:
        shape = {"shape": list(dataset.image_shape)}
        num_bytes = dataset.decoded_train.images.nbytes + dataset.decoded_test.images.nbytes
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        **{
            name: {"images": sum(of_split), "class_min": min(of_split), "class_max": max(of_split)}
            for name, of_split in counts.items()
        },
        **shape,
        "dtype": "uint8",
        "max_value": dataset.max_value,
        "bytes": num_bytes,
        "fingerprint": dataset.fingerprint,
    }


def subset(images: Images, num_images: int | None, seed: int) -> Images:
    """`num_images` images of the split in random order; the split itself where that is all, or None."""
    return images if num_images is None or num_images >= len(images) else shuffled(images, num_images, seed)


def shuffled(images: Images, num_images: int, seed: int) -> Images:
    """`num_images` images of the split, or all it has, in random order: the first n of them are its `subset` of n.

    They are chosen by the seed: folders come sorted by class, so the first images are no sample.
    """
    from fastarat_kernels import philox  # which takes PyTorch

    return images.take(philox.permutation(seed, 0, len(images))[:num_images].numpy())


def class_problems(num_classes: int) -> list[str]:
    """What is wrong with so many classes, as a line of a check; empty if nothing is."""
    return [ONE_CLASS] if num_classes < 2 else []


def label_problem(labels: np.ndarray, classes: int) -> str | None:
    """What is wrong with `labels` where one is not in 0 … `classes` − 1, else None."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size == 0:
        return None
    return f"label {labels[wrong[0]]} of image {wrong[0]} is not in 0 … {classes - 1} ({wrong.size} such labels)"
