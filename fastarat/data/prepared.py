"""The prepared form: four memory-mapped arrays and a manifest, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.data import unfinished
from fastarat.data.dataset import Dataset, ImageSet, fingerprint, label_problem
from fastarat.data.encoded import EncodedSet
from fastarat.errors import UserError, WorkError
from fastarat.files import synchronise

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
FILES = tuple(f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels"))


@contextmanager
def create(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` to fill; it becomes `out` only if the block ends well.

    Raises `UserError` if `out` exists, `WorkError` if the disk is full or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: choose another place, or remove it first.")
    try:
        with unfinished.beside(out) as temporary:
            yield temporary
            temporary.rename(out)
            synchronise(out.parent)
    except OSError as error:
        raise WorkError(f"Cannot write {out}: {error.strerror or error}; nothing was left there.") from error


def allocate(folder: Path, split: str, count: int, shape: tuple[int, ...]) -> ImageSet:
    """Writable memory maps for a split's uint8 images [count, *shape] and int64 labels [count]."""
    images = allocate_array(folder / f"{split}_images.npy", np.uint8, (count, *shape))
    return ImageSet(images, allocate_array(folder / f"{split}_labels.npy", np.int64, (count,)))


def seal(folder: Path, name: str, classes: tuple[str, ...], max_value: int, source: str) -> None:
    """Bring the arrays in `folder` to the disk and write the manifest, last, that makes them a data set."""
    train, test = (_load(folder, split) for split in SPLITS)
    manifest = {
        "version": FORMAT_VERSION,
        "name": name,
        "classes": list(classes),
        "max_value": max_value,
        "image_shape": list(train.images.shape[1:]),
        "counts": {"train": len(train.labels), "test": len(test.labels)},
        "class_counts": {
            split: np.bincount(part.labels, minlength=len(classes)).tolist()
            for split, part in zip(SPLITS, (train, test), strict=True)
        },
        "files": {file: _describe(folder / file) for file in FILES},
        "fingerprint": fingerprint(train, test),
        "source": source,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in (*(folder / file for file in FILES), folder / MANIFEST, folder):
        synchronise(path)


def write(dataset: Dataset, out: Path, source: str) -> None:
    """Write `dataset` as the new prepared set `out`; raises as `create` does."""
    with create(out) as folder:
        for split, part in _parts(dataset):
            space = allocate(folder, split, len(part.labels), part.images.shape[1:])
            space.images[:] = part.images
            space.labels[:] = part.labels
        seal(folder, dataset.name, dataset.classes, dataset.max_value, source)


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a prepared set."""
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> Dataset:
    """Open a prepared set; images are read-only memory maps.

    Raises `UserError` naming the file that is missing, cut short or does not fit the manifest. Contents
    are not hashed here: `problems` does that.
    """
    manifest = _read_manifest(folder)
    try:
        for file in FILES:
            _require_size(folder / file, manifest["files"][file]["bytes"])
        train, test = (_load(folder, split) for split in SPLITS)
        classes = tuple(str(name) for name in manifest["classes"])
        for split, part in zip(SPLITS, (train, test), strict=True):
            _require_fit(folder, split, part, manifest, len(classes))
        name, max_value = str(manifest["name"]), int(manifest["max_value"])
        return Dataset(name, train, test, classes, max_value, str(manifest["fingerprint"]))
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({' '.join(str(error).split())}): prepare it again.") from error


def problems(folder: Path) -> list[str]:
    """Everything wrong with the prepared set, a line each; every file is read and hashed."""
    try:
        dataset = read(folder)
    except UserError as error:
        return [str(error)]
    files = _read_manifest(folder)["files"]
    changed = [file for file in FILES if _sha256(folder / file) != files[file].get("sha256")]
    found = [f"{folder / file} has changed since it was written (SHA-256 differs)" for file in changed]
    if not changed and fingerprint(dataset.decoded_train, dataset.test) != dataset.fingerprint:
        found.append(f"{folder / MANIFEST}: the fingerprint is not that of the images and labels")
    return found


def allocate_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """A new, writable memory map whose place on the disk is sure. Raises `OSError` if there is none."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # A memory map on a full disk would end the process with SIGBUS; asking for the space raises instead.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def stored(folder: Path) -> tuple[EncodedSet, EncodedSet, tuple[str, ...]]:
    """The images of both splits where they lie in the files, and the classes. Raises as `read` does, or if grey."""
    dataset = read(folder)
    height, width, channels = dataset.image_shape
    if channels != 3 or dataset.max_value != 255:
        raise UserError(f"{folder} has no 8-bit RGB images: use the resident loader")
    train, test = (_stored(folder, split, part.labels, (width, height)) for split, part in _parts(dataset))
    return train, test, dataset.classes


def _parts(dataset: Dataset) -> Iterator[tuple[str, ImageSet]]:
    yield from zip(SPLITS, (dataset.decoded_train, dataset.test), strict=True)


def _stored(folder: Path, split: str, labels: np.ndarray, size: tuple[int, int]) -> EncodedSet:
    path = folder / f"{split}_images.npy"
    first = np.load(path, mmap_mode="r", allow_pickle=False).offset
    count, length = len(labels), 3 * size[0] * size[1]
    return EncodedSet(
        (str(path),),
        np.zeros(count, np.int32),
        first + length * np.arange(count, dtype=np.int64),
        np.full(count, length, np.int64),
        np.ones(count, bool),
        np.tile(np.array(size, np.int32), (count, 1)),
        np.array(labels),
        tuple(f"{split} image {i} of {folder.name}" for i in range(count)),
    )


def _load(folder: Path, split: str) -> ImageSet:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
    return ImageSet(images, np.load(folder / f"{split}_labels.npy", allow_pickle=False))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = int(manifest["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a readable manifest: prepare the data set again.") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder} was made by a newer fastarat (format {version}; this one reads {FORMAT_VERSION}): "
            "upgrade fastarat, or prepare the set again."
        )
    return manifest


def _require_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: prepare the data set again.")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path} has {found} bytes instead of {size}: copy it or prepare the data set again.")


def _require_fit(folder: Path, split: str, part: ImageSet, manifest: dict[str, Any], classes: int) -> None:
    count, shape = manifest["counts"][split], tuple(manifest["image_shape"])
    images, labels = part.images, part.labels
    if images.dtype != np.uint8 or images.shape != (count, *shape) or len(shape) != 3:
        raise UserError(
            f"{folder / f'{split}_images.npy'} is {images.dtype} {images.shape}, not uint8 {(count, *shape)}."
        )
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise UserError(f"{folder / f'{split}_labels.npy'} is {labels.dtype} {labels.shape}, not int64 ({count},).")
    problem = label_problem(labels, classes)
    if problem:
        raise UserError(f"{folder / f'{split}_labels.npy'}: {problem}; prepare the data set again.")


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
