"""What is in a data set, and what is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np

from fastarat.data import arrays, cifar, image_folder, prepared
from fastarat.data.dataset import Dataset, ImageSet
from fastarat.data.fetch import require_checksum
from fastarat.data.sources import KNOWN, find, names_under_root, open_dataset
from fastarat.errors import UserError

KINDS = {"cifar": "archive", "prepared": "prepared set", "images": "images in", "arrays": "arrays in"}


def check(data: str) -> list[str]:
    """Every problem of the data set, a line each; empty if it is whole.

    Prepared sets: every file's SHA-256, shapes, labels. Image folders and tars: every image is decoded.
    CIFAR archives: checksum and structure. Arrays: kinds, shapes, labels. Raises `UserError` if there is no such set.
    """
    source = find(data)
    if source.kind == "prepared":
        return prepared.problems(source.path)
    if source.kind == "images":
        return _image_problems(source.path)
    if source.kind == "arrays":
        return _array_problems(source.path)
    # Nothing to check in what is embedded: it is part of an installed package.
    return _archive_problems(source.path, source.archive) if source.archive else []


def info(data: str) -> dict[str, Any]:
    """What `data` holds, as `describe` gives it. Raises as `open_dataset` does."""
    return describe(open_dataset(data))


def describe(dataset: Dataset) -> dict[str, Any]:
    """Plain values for a table or JSON; `bytes` counts the pixels of both splits."""
    images = dataset.train.images
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "train": _split_info(dataset.train, len(dataset.classes)),
        "test": _split_info(dataset.test, len(dataset.classes)),
        "shape": list(images.shape[1:]),
        "dtype": str(images.dtype),
        "max_value": dataset.max_value,
        "bytes": images.nbytes + dataset.test.images.nbytes,
        "fingerprint": dataset.fingerprint,
    }


def listing() -> list[dict[str, str]]:
    """Known names and what lies under `data_root()`: the `name` and `state` of each."""
    return [{"name": name, "state": _state(name)} for name in (*KNOWN, *names_under_root())]


def _state(name: str) -> str:
    try:
        source = find(name)
    except UserError as error:
        return str(error)
    return "in the package" if source.kind == "embedded" else f"{KINDS[source.kind]} {source.path}"


def _split_info(split: ImageSet, classes: int) -> dict[str, int]:
    counts = np.bincount(split.labels, minlength=classes)
    return {"images": len(split.labels), "class_min": int(counts.min()), "class_max": int(counts.max())}


def _image_problems(path: Path) -> list[str]:
    try:
        return image_folder.problems(path)
    except UserError as error:  # what cannot be read at all has this one problem
        return [str(error)]


def _array_problems(path: Path) -> list[str]:
    try:
        arrays.read(path)
    except UserError as error:
        return [str(error)]
    return []


def _archive_problems(path: Path, archive: cifar.Archive) -> list[str]:
    found = []
    for examine in (require_checksum, cifar.read):
        try:
            examine(path, archive)
        except UserError as error:
            found.append(str(error))
    return found
