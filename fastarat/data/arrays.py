"""Images and labels in one .npz file, as published sets of synthetic images come: all of it is a training split."""

from pathlib import Path

import numpy as np

from fastarat.data.dataset import Dataset, ImageSet, from_arrays
from fastarat.errors import UserError
from fastarat.npz import read_npz

MOST_CLASSES = 2**16
NAMES = {"images": ("image", "images"), "labels": ("label", "labels")}


def read(path: Path) -> Dataset:
    """`image` or `images` (uint8 [N, H, W, C]), and `label` or `labels` (whole numbers [N], from 0), never unpickled.

    Classes are numbered; there are no test images. Raises `UserError` for anything else.
    """
    arrays = read_npz(path)
    images, labels = (_entry(path, arrays, names) for names in NAMES.values())
    if images.dtype != np.uint8 or images.ndim != 4 or not all(images.shape):
        raise UserError(f"{path}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, C]")
    are_numbers = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
    # Compared before they become int64, which holds not all of uint64.
    if not are_numbers or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        wanted = f"a class number from 0 to {MOST_CLASSES - 1} for each of {len(images)} images"
        raise UserError(f"{path}: labels are {labels.dtype} {list(labels.shape)}, expected {wanted}")
    labels = labels.astype(np.int64)
    train = ImageSet(np.ascontiguousarray(images), labels)
    test = ImageSet(images[:0], labels[:0])
    return from_arrays(path.stem, train, test, tuple(map(str, range(int(labels.max()) + 1))), 255)


def _entry(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    found = next((arrays[name] for name in names if name in arrays), None)
    if found is None:
        raise UserError(f"{path} has no entry {' or '.join(names)}: expected images and labels")
    return found
