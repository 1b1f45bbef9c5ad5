"""Images and labels in one .npz file, as published sets of synthetic images come: all of it is a training split."""

from pathlib import Path

import numpy as np

from fastarat.common import console
from fastarat.common.arrays import read_npz
from fastarat.common.errors import UserError
from fastarat.data.images.dataset import MAX_VALUE, MOST_CLASSES, Dataset, Images, from_splits

NAMES = {"images": ("image", "images"), "labels": ("label", "labels")}
CHANNELS = (1, 3)


def read(path: Path) -> Dataset:
    """`image` or `images` (uint8 [N, H, W, C], or [N, C, H, W]; one channel or three), and `label` or `labels` (whole
    numbers [N], from 0), never unpickled.

    Classes are numbered, and those without images are named; there are no test images. Raises `UserError` for anything
    else.
    """
    arrays = read_npz(path)
    images, labels = (_entry(path, arrays, names) for names in NAMES.values())
    images = _channels_last(path, images)
    labels = _numbered(path, labels, len(images))
    train = Images(np.ascontiguousarray(images), labels)
    test = Images(images[:0], labels[:0])
    return from_splits(path.stem, train, test, tuple(map(str, range(int(labels.max()) + 1))), MAX_VALUE)


def _channels_last(path: Path, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] of either order of axes. Raises `UserError` where they could be both, or neither."""
    found = f"{path}: images are {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8 or images.ndim != 4 or not all(images.shape):
        raise UserError(f"{found}, expected uint8 [N, H, W, C]")
    is_last, is_first = images.shape[3] in CHANNELS, images.shape[1] in CHANNELS
    if is_last and is_first:
        raise UserError(f"{found}, which may be [N, H, W, C] or [N, C, H, W]: give images of another height or width")
    if not is_last and not is_first:
        raise UserError(f"{found}, expected uint8 [N, H, W, C] of 1 or 3 channels")
    if is_first:
        console.notice(f"{found}: taken as [N, C, H, W], PyTorch's order, and turned into [N, H, W, C]")
    return images.transpose(0, 2, 3, 1) if is_first else images


def _numbered(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    """int64 [N] of class numbers. Raises `UserError` for anything else, and where they count from 1."""
    are_numbers = labels.dtype.kind in "iu" and labels.shape == (count,)
    # Compared before they become int64, which holds not all of uint64.
    if not are_numbers or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        wanted = f"a class number from 0 to {MOST_CLASSES - 1} for each of {count} images"
        raise UserError(f"{path}: labels are {labels.dtype} {list(labels.shape)}, expected {wanted}")
    labels = labels.astype(np.int64)
    empty = np.flatnonzero(np.bincount(labels) == 0).tolist()
    if empty == [0]:
        raise UserError(f"{path}: labels count from 1 to {labels.max()}, expected from 0: save them as label - 1")
    if empty:
        named = f"{', '.join(map(str, empty[:10]))}{', …' if len(empty) > 10 else ''}"
        console.notice(f"{path} has no image of {len(empty)} of its {labels.max() + 1} classes: {named}")
    return labels


def _entry(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    found = next((arrays[name] for name in names if name in arrays), None)
    if found is None:
        raise UserError(f"{path} has no entry {' or '.join(names)}: expected images and labels")
    return found
