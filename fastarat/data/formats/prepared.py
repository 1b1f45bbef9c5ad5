"""The prepared form: four memory-mapped arrays and a manifest, written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastarat.common import arrays, unfinished
from fastarat.common.errors import UserError
from fastarat.common.files import synchronise
from fastarat.common.json_files import read_sealed, write_sealed
from fastarat.data.formats.beton.seal import sha256_of
from fastarat.data.images import copies
from fastarat.data.images.damaged import writable
from fastarat.data.images.dataset import (
    MAX_VALUE,
    MOST_CLASSES,
    SPLITS,
    Dataset,
    Images,
    class_counts,
    class_problems,
    fingerprint,
    from_splits,
    label_problem,
)
from fastarat.data.images.stored import StoredImages

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
AGAIN = "prepare the data set again"
FILES = tuple(f"{split}_{part}.npy" for split in SPLITS for part in ("images", "labels"))


@contextmanager
def create(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` to fill; it becomes `out` only if the block ends well.

    Raises `UserError` if `out` exists, `WorkError` if the disk is full or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already: choose another place, or remove it first")
    with writable(out, "nothing was left there"), unfinished.beside(out) as temporary:
        yield temporary
        temporary.rename(out)
        synchronise(out.parent)


def allocate(folder: Path, split: str, count: int, shape: tuple[int, ...]) -> Images:
    """Writable memory maps for a split's uint8 images [count, *shape] and int64 labels [count]."""
    images = arrays.allocate(folder / f"{split}_images.npy", np.uint8, (count, *shape))
    return Images(images, arrays.allocate(folder / f"{split}_labels.npy", np.int64, (count,)))


def seal(folder: Path, name: str, classes: tuple[str, ...], *, max_value: int, source: str) -> None:
    """Bring the arrays in `folder` to the disk and write the manifest, last, that makes them a data set."""
    train, test = (
        Images(np.load(folder / f"{split}_images.npy", mmap_mode="r"), np.load(folder / f"{split}_labels.npy"))
        for split in SPLITS
    )
    dataset = from_splits(name, train, test, classes, max_value)
    manifest = {
        "version": FORMAT_VERSION,
        "name": name,
        "classes": list(classes),
        "max_value": max_value,
        "image_shape": list(train.images.shape[1:]),
        "counts": {split: len(part) for split, part in dataset.splits.items()},
        "class_counts": class_counts(dataset),
        "files": {
            file: {"bytes": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)} for file in FILES
        },
        "fingerprint": dataset.fingerprint,
        "source": source,
    }
    write_sealed(folder / MANIFEST, manifest)
    for path in (*(folder / file for file in FILES), folder):
        synchronise(path)


def write(dataset: Dataset, out: Path, source: str) -> None:
    """Write `dataset` as the new prepared set `out`; raises as `create` does."""
    with create(out) as folder:
        for split, part in _parts(dataset):
            space = allocate(folder, split, len(part.labels), part.images.shape[1:])
            space.images[:] = part.images
            space.labels[:] = part.labels
        seal(folder, dataset.name, dataset.classes, max_value=dataset.max_value, source=source)


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds a prepared set."""
    return (folder / MANIFEST).is_file()


def read(folder: Path) -> Dataset:
    """Open a prepared set; images are read-only memory maps.

    Raises `UserError` naming the file that is missing, cut short or does not fit the manifest. Contents
    are not hashed here: `problems` and `read_whole` do that.
    """
    manifest = _read_manifest(folder)
    train, test = (_open(folder, split, manifest) for split in SPLITS)
    classes, max_value = tuple(manifest["classes"]), manifest["max_value"]
    return Dataset(manifest["name"], train, test, classes, max_value, manifest["fingerprint"])


def read_whole(folder: Path) -> Dataset:
    """As `read`, with every byte compared with its checksum. Raises `UserError` naming the file that has changed."""
    dataset = read(folder)
    if changed := _changed(folder):
        raise UserError(changed[0])
    return dataset


def problems(folder: Path) -> list[str]:
    """Everything wrong with the prepared set, a line each; every file is read and hashed."""
    try:
        dataset = read(folder)
    except UserError as error:
        return [str(error)]
    found = _changed(folder)
    if not found and fingerprint(dataset.train, dataset.test) != dataset.fingerprint:
        found.append(f"{folder / MANIFEST}: the fingerprint is not that of the images and labels")
    return found + class_problems(len(dataset.classes)) + copies.problems_of(dataset)


def _changed(folder: Path) -> list[str]:
    files = _read_manifest(folder)["files"]
    return [
        f"{folder / file} has changed since it was written (SHA-256 differs)"
        for file in FILES
        if sha256_of(folder / file) != files[file]["sha256"]
    ]


def reads_one_by_one(folder: Path) -> bool:
    """Whether these are 8-bit RGB images, which loaders can read one by one."""
    return _is_rgb(read(folder))


def stored(folder: Path) -> Dataset:
    """The images where they lie in the files. Raises as `read` does, or if they are grey."""
    dataset = read(folder)
    height, width, _ = dataset.image_shape
    if not _is_rgb(dataset):
        raise UserError(f"{folder} has no 8-bit RGB images: use the resident loader")
    train, test = (_stored(folder, split, part, (width, height)) for split, part in _parts(dataset))
    return from_splits(folder.name, train, test, dataset.classes)


def _is_rgb(dataset: Dataset) -> bool:
    return dataset.image_shape[2] == 3 and dataset.max_value == MAX_VALUE


def _parts(dataset: Dataset) -> Iterator[tuple[str, Images]]:
    yield from zip(SPLITS, (dataset.decoded_train, dataset.decoded_test), strict=True)


def _stored(folder: Path, split: str, part: Images, size: tuple[int, int]) -> StoredImages:
    images, labels = part.images, part.labels
    path = folder / f"{split}_images.npy"
    first = path.stat().st_size - images.nbytes
    count, length = len(labels), 3 * size[0] * size[1]
    return StoredImages(
        (str(path),),
        np.zeros(count, np.int32),
        first + length * np.arange(count, dtype=np.int64),
        np.full(count, length, np.int64),
        np.ones(count, bool),
        np.tile(np.array(size, np.int32), (count, 1)),
        np.array(labels),
        tuple(f"{split} image {i} of {folder.name}" for i in range(count)),
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = read_sealed(folder / MANIFEST, FORMAT_VERSION, fix=AGAIN)
    if not _fits(manifest):
        raise UserError(f"{folder / MANIFEST} cannot be read (its parts do not fit together): {AGAIN}")
    return manifest


def _fits(manifest: dict[str, Any]) -> bool:
    """Whether every value that is used has its type and bounds."""
    try:
        shape, counts, classes = manifest["image_shape"], manifest["counts"], manifest["classes"]
        sizes = [*shape, *(counts[split] for split in SPLITS), *(manifest["files"][file]["bytes"] for file in FILES)]
        texts = [*classes, manifest["name"], manifest["fingerprint"]]
        texts += [manifest["files"][file]["sha256"] for file in FILES]
        return (
            all(type(size) is int and size >= 0 for size in sizes)
            and all(isinstance(text, str) for text in texts)
            and type(manifest["max_value"]) is int
            and 1 <= manifest["max_value"] <= 255
            and len(shape) == 3
            and min(shape) > 0
            and isinstance(classes, list)
            and 1 <= len(classes) <= MOST_CLASSES
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _open(folder: Path, split: str, manifest: dict[str, Any]) -> Images:
    """Both arrays of a split, as the manifest says that they are; images stay on the disk."""
    count, shape = manifest["counts"][split], tuple(manifest["image_shape"])
    paths = [folder / f"{split}_{part}.npy" for part in ("images", "labels")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing: {AGAIN}")
        found, size = path.stat().st_size, manifest["files"][path.name]["bytes"]
        if found != size:
            raise UserError(f"{path} has {found} bytes instead of {size}: copy it or {AGAIN}")
    try:
        images = arrays.open_mapped(paths[0], np.uint8, (count, *shape))
        labels = np.array(arrays.open_mapped(paths[1], np.int64, (count,)))
    except UserError as error:
        raise UserError(f"{error}: {AGAIN}") from error
    if problem := label_problem(labels, len(manifest["classes"])):
        raise UserError(f"{paths[1]}: {problem}; {AGAIN}")
    return Images(images, labels)
