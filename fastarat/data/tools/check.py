"""What is in a data set, and what is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common.errors import UserError
from fastarat.data.formats import arrays, cifar, image_folder, prepared, shards
from fastarat.data.formats.archives import is_compressed
from fastarat.data.formats.beton import check as beton_check
from fastarat.data.formats.find import KNOWN, Source, find, names_under_root
from fastarat.data.images.dataset import Dataset, Images
from fastarat.data.images.stored import StoredImages
from fastarat.data.images.whole_sets import scan_all
from fastarat.data.open import open_dataset
from fastarat.data.stored import StoredData, open_stored
from fastarat.data.tools import sheet
from fastarat.data.tools.fetch import require_checksum

KINDS = {
    "cifar": "archive",
    "prepared": "prepared set",
    "images": "images in",
    "arrays": "arrays in",
    "beton": "FFCV file",
    "shards": "shards in",
}


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
    if source.kind == "beton":
        return beton_check.problems(source.path)
    if source.kind == "shards":
        return _shard_problems(source)
    if source.kind == "arrays":
        return _array_problems(source.path)
    # Nothing to check in what is embedded: it is part of an installed package.
    return _archive_problems(source.path, source.archive) if source.archive else []


def info(data: str) -> dict[str, Any]:
    """What `data` holds, as `describe` gives it; where sizes may differ, their span instead of a shape.

    Raises as `open_dataset` does.
    """
    source = find(data)
    if source.kind == "beton":
        return beton_check.info(source.path)
    stored = _of_several_sizes(source)
    return _stored_info(stored) if stored else describe(open_dataset(data))


def draw(data: str, out: Path) -> None:
    """Some training images of each class of `data` in one PNG. Raises `WorkError` if it cannot be written."""
    source = find(data)
    stored = open_stored(source) if source.kind == "beton" else _of_several_sizes(source)
    if stored:
        sheet.write(stored.train, stored.classes, out)
    else:
        dataset = open_dataset(data)
        sheet.write(dataset.train, dataset.classes, out, dataset.max_value)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Plain values for a table or JSON; `bytes` counts the pixels of both splits."""
    train = dataset.decoded_train
    images = train.images
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "train": _split_info(train, len(dataset.classes)),
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


def _split_info(split: Images | StoredImages, classes: int) -> dict[str, int]:
    counts = np.bincount(split.labels, minlength=classes)
    return {"images": len(split.labels), "class_min": int(counts.min()), "class_max": int(counts.max())}


def _of_several_sizes(source: Source) -> StoredData | None:
    """Image files where their sizes differ, or nobody knows before they are decoded: those of shards."""
    if source.kind not in ("images", "shards") or is_compressed(source.path):
        return None
    stored = open_stored(source, "skip")
    found = {part.common_size() for part in (stored.train, stored.test) if len(part)}
    is_whole = len(found) == 1 and None not in found and not stored.num_skipped
    return None if source.kind == "images" and is_whole else stored


def _stored_info(stored: StoredData) -> dict[str, Any]:
    parts = {"train": stored.train, "test": stored.test}
    return {
        "name": stored.name,
        "classes": list(stored.classes),
        **{split: _split_info(part, len(stored.classes)) for split, part in parts.items()},
        "sizes": beton_check.span_of(np.concatenate([part.sizes for part in parts.values()])),
        "dtype": "uint8",
        "max_value": 255,
        "bytes": int(sum(part.lengths.sum() for part in parts.values())),
        "fingerprint": stored.fingerprint,
    }


def _shard_problems(source: Source) -> list[str]:
    found: list[str] = []
    try:
        surveyed = shards.survey(source.path)
        found += surveyed.problems
        train, test, _ = shards.assemble(source.path, surveyed)
        for part in (train, test):
            found += scan_all(part, source.path.name).problems.values()
    except UserError as error:  # beyond which nothing can be told
        found.append(str(error))
    return found


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
